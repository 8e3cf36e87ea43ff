"""A student in mteb, by its directory: a real evaluation of a task made from local pairs."""

from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from tiny import english_sentences

from shortstack.distillation.evaluation.sets import StsPairs
from shortstack.distillation.evaluation.sts import correlations, sts_similarities
from shortstack.model import Embedder

mteb = pytest.importorskip("mteb", reason="mteb is not installed: pip install mteb")


def test_mteb_measures_what_we_measure(tiny_cls_dir: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from mteb.abstasks import AbsTaskSTS
    from mteb.abstasks.task_metadata import TaskMetadata

    first, second = english_sentences(40, seed=1), english_sentences(40, seed=2)
    scores = [float(number % 6) for number in range(40)]

    class LocalSts(AbsTaskSTS):
        metadata = TaskMetadata(
            name="LocalSts",
            description="Pairs made here.",
            dataset={"path": "local/pairs", "revision": "1"},
            type="STS",
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="cosine_spearman",
        )

        def load_data(self, **kwargs: object) -> None:
            columns = {"sentence1": first, "sentence2": second, "score": scores}
            self.dataset = {"test": Dataset.from_dict(columns)}
            self.data_loaded = True

    student = Embedder.load(tiny_cls_dir, "cpu", "fp32").keep_layers([0, 3, 7])
    student.save(tmp_path / "student")
    theirs = SentenceTransformer(str(tmp_path / "student"), device="cpu")
    result = mteb.evaluate(theirs, LocalSts(), cache=None, co2_tracker=False, show_progress_bar=False)
    found = result.task_results[0].scores["test"][0]

    pairs = StsPairs("local", first, second, np.array(scores))
    ours = correlations(sts_similarities(Embedder.load(tmp_path / "student", "cpu", "fp32"), pairs), pairs.scores)
    assert found["cosine_spearman"] == pytest.approx(ours["spearman_cosine"], abs=1e-3)
    assert found["cosine_pearson"] == pytest.approx(ours["pearson_cosine"], abs=1e-4)
