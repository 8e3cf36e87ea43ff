"""Another tool's model judged as a student: the same figures as by evaluate.py, and a place on the frontier."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from test_evaluate import write_sts
from tiny import VOCABULARY, english_sentences, make_tokenizer, put

from shortstack import evaluate
from shortstack.benchmark import others
from shortstack.distillation.recipe import Recipe, recipe_text
from shortstack.distillation.report.frontier import models_of
from shortstack.model.files import read_json

Call = Callable[..., None]


def judged_by(
    call: Call, main: Callable[[], None], model: Path, teacher: Path, place: Path, *more: str
) -> dict[str, Any]:
    text = english_sentences(60)
    queries, documents = (
        put(place / "queries.txt", "\n".join(text[:30])),
        put(place / "texts.txt", "\n".join(text[30:])),
    )
    sets = ["--retrieval", f"set=parallel:{queries},{documents}", "--sts", f"pairs={write_sts(place / 'sts.tsv')}"]
    call(main, str(model), "--teacher", str(teacher), *sets, "--output", str(place), *more)
    return read_json(place / "evaluation.json")


def test_the_figures_are_those_of_evaluate(tiny_model_dir: Path, model_copy: Path, tmp_path: Path, call: Call) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "ours").mkdir()
    theirs = judged_by(call, others.main, model_copy, tiny_model_dir, tmp_path / "theirs")
    ours = judged_by(call, evaluate.main, model_copy, tiny_model_dir, tmp_path / "ours", "--precision", "fp32")
    assert theirs["retrieval"]["set"]["student"]["found@10"] == 1
    assert theirs["retention"]["pairs"] == pytest.approx(1, rel=1e-3)
    for who in ("student", "teacher"):
        figure, expected = (figures[who]["pairs"]["pearson_cosine"] for figures in (theirs, ours))
        assert figure == pytest.approx(expected, rel=1e-3), who
    assert theirs["models"]["teacher"] == ours["models"]["teacher"]
    assert theirs["models"]["student"]["layers"] == ours["models"]["student"]["layers"]


def test_word_vectors_are_drawn_beside_students(tiny_model_dir: Path, tmp_path: Path, call: Call) -> None:
    torch.manual_seed(0)
    run = tmp_path / "static"
    vectors = StaticEmbedding(make_tokenizer(), embedding_weights=torch.randn(len(VOCABULARY) + 1, 32))
    SentenceTransformer(modules=[vectors]).save(str(run / "model"))
    figures = judged_by(call, others.main, run / "model", tiny_model_dir, run)
    assert figures["retrieval"]["set"]["student"]["found@10"] < 1
    student, teacher = sorted(models_of([run]), key=lambda model: model.name != "static")
    assert (student.name, student.layers, student.dimensions) == ("static", "0 of 6", 32)
    assert student.found == figures["retrieval"]["set"]["student"]["found@10"] and teacher.found == 1
    assert student.speed is not None and student.megabytes == pytest.approx(
        4e-6 * figures["models"]["student"]["parameters"]
    )


def test_figures_do_not_replace_those_of_a_run(
    tiny_model_dir: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    sets = ["--teacher", tiny_model_dir, "--sts", f"pairs={write_sts(tmp_path / 'sts.tsv')}"]
    for trained in (Recipe(teacher="a", sentences=["a.txt"]), Recipe(teacher="a", teacher_vectors=["a.npy:a.txt"])):
        (tmp_path / "recipe.toml").write_text(recipe_text(trained))
        assert "is a run of train.py" in refusal(others.main, tiny_model_dir, *sets, "--output", tmp_path)
    assert "say with --output where" in refusal(others.main, "owner/name", *sets)
