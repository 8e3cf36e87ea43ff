"""A student of a teacher that is known only by its vectors: any dimensions, a head by ridge regression, any loader."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import RunDirectory, train, write_recipe
from tiny import english_sentences, load, make_bert_dir

from shortstack import bench
from shortstack.distillation.data.labels import LabelledSentences
from shortstack.distillation.report.card import model_card
from shortstack.distillation.report.run_files import RunFiles
from shortstack.distillation.router import export_router
from shortstack.distillation.student.head import fit_head
from shortstack.model.files import InputError

TEXTS = sorted({*english_sentences(400)})


def vectors_recipe(directory: Path, **changes: Any) -> Path:
    """`write_recipe`, whose text is that of the vectors."""
    sentences = changes.pop("sentences", [])
    path = write_recipe(directory, Path("none"), **changes)
    path.write_text(re.sub(r"(?m)^sentences = .*$", f"sentences = {json.dumps(sentences)}", path.read_text()))
    return path


@pytest.fixture(scope="module")
def other_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of other dimensions, which the student never sees."""
    return make_bert_dir(tmp_path_factory.mktemp("other") / "teacher", layers=2, hidden=48, heads=6, seed=3)


@pytest.fixture(scope="module")
def run(other_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    directory = tmp_path_factory.mktemp("vectors")
    body = make_bert_dir(directory / "body", layers=3, prompts={"query": "who sees "}, default_prompt="query")
    np.save(directory / "index.npy", load(other_teacher).encode(TEXTS))
    (directory / "index.txt").write_text("\n".join(TEXTS))
    recipe = vectors_recipe(
        directory, layers=[0, 2], epochs=6, start_from=str(body),
        teacher_vectors=[f"{directory / 'index.npy'}:{directory / 'index.txt'}"], learning_rate=3e-3,
    )  # fmt: skip
    ended = train(recipe)
    assert ended.status == 0, ended.err
    return RunDirectory(directory / "runs" / "tiny")


def test_the_student_comes_nearer_than_the_regression(run: RunDirectory) -> None:
    mse = list(run.logged("negative_mse").values())
    assert mse[-1] > mse[0] * 0.9  # a tenth nearer, of what the regression left
    figures = run.json("evaluation.json")
    assert figures["sanity"]["mean_cosine"] > 0.8
    assert "overlap@10" in figures["overlap"]["asymmetric"]
    assert "teacher" not in figures["models"]


def test_what_is_published_names_the_encoder_and_no_teacher(
    run: RunDirectory, refusal: Callable[..., str], tmp_path: Path
) -> None:
    files = RunFiles.read(run.path)
    card = model_card(files)
    assert "of another encoder" in card and "known only by its vectors" in card
    assert files.bench_command.endswith(f"--teacher {files.recipe['start_from']}")
    assert "no run names its teacher; give --teacher" in refusal(bench.main, run.path / "model")
    with pytest.raises(InputError, match="no run names its teacher; give --teacher"):
        export_router(str(run.path / "model"), output=tmp_path / "router")


def test_it_has_the_teachers_dimensions_without_prompts_and_any_loader_reads_it(
    run: RunDirectory, other_teacher: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    student = load(run.path / "model")
    embeddings = student.encode(TEXTS[:20])
    assert embeddings.shape == (20, 48) and student.settings.prompts == {}
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    theirs = SentenceTransformer(str(run.path / "model"), device="cpu", model_kwargs={"dtype": torch.float32})
    np.testing.assert_allclose(theirs.encode(TEXTS[:20]), embeddings, atol=1e-5)
    similarity = (embeddings * load(other_teacher).encode(TEXTS[:20])).sum(axis=1)
    assert similarity.mean() > 0.8


def test_the_head_is_the_ridge_regression(tiny_model_dir: Path) -> None:
    """On labels that are a linear map of the student's own embeddings the head finds that map."""
    student = load(tiny_model_dir)
    student.settings.normalize = False
    tokens = student.tokenize(TEXTS[:200])
    inputs = student.embed(tokens)
    wanted = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    labels = inputs @ wanted.T + 3
    fit_head(student, LabelledSentences(tokens, labels), normalised=False)
    torch.testing.assert_close(student.embed(tokens), labels, atol=0.05, rtol=0.05)
    assert not student.settings.normalize and student.dimensions == 5
    with pytest.raises(InputError, match="only one text to train on"):
        fit_head(load(tiny_model_dir), LabelledSentences(tokens, labels).take(np.array([0])), normalised=False)
    cut = load(tiny_model_dir)
    cut.settings.truncate_dim = 8  # of the encoder's own embeddings: the head reads and gives all
    fit_head(cut, LabelledSentences(tokens, labels), normalised=False)
    assert torch.equal(cut.dense.weight, student.dense.weight) and cut.dimensions == 5
    before = student.dense
    fit_head(student, LabelledSentences(tokens, labels), normalised=True)
    assert student.dense is before and student.settings.normalize


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"start_from": ""}, "start_from = '' is not allowed; it must be the encoder to train"),
        ({"sentences": ["a.txt"]}, "sentences = ['a.txt'] is not allowed; it must be empty beside teacher_vectors"),
        ({"general": ["a.txt"]}, "general = ['a.txt'] is not allowed; it must be empty beside teacher_vectors"),
        ({"metric_for_best_model": "mean_found@10", "retrieval": {"a": "b"}}, "sts_dev_pearson_cosine, a_ndcg@10"),
        ({"layers": "auto:2"}, "layers: auto:2 needs the teacher itself; name the layers, or take even:3"),
        ({"teacher_vectors": ["nowhere.npy:a.txt"]}, "nowhere.npy:a.txt: no such file"),
    ],
)
def test_what_does_not_fit_is_one_line(
    tiny_model_dir: Path, tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    np.save(tmp_path / "v.npy", np.eye(60, dtype=np.float32))
    (tmp_path / "t.txt").write_text("\n".join(TEXTS[:60]))
    settings = {"start_from": str(tiny_model_dir), "layers": [0]}
    settings |= {"teacher_vectors": [f"{tmp_path / 'v.npy'}:{tmp_path / 't.txt'}"]} | changes
    ended = train(vectors_recipe(tmp_path / "run", **settings))
    assert ended.status == 2 and words in ended.error


def test_a_dense_layer_to_other_dimensions_is_refused(tmp_path: Path) -> None:
    from shortstack.distillation.student.head import check_body

    body = load(make_bert_dir(tmp_path / "body", layers=1, dense=(16, "torch.nn.modules.linear.Identity")))
    with pytest.raises(InputError, match="has a dense layer to 16 dimensions, the vectors have 48"):
        check_body(body, 48, "body")
