"""Narrower students: the units that matter stay, and a run trains with what is left."""

import functools
import signal
from pathlib import Path

import hooks
import numpy as np
import pytest
import torch
from processes import RunDirectory, assert_same_run, forked_ranks, train, write_recipe
from sentence_transformers import SentenceTransformer
from tiny import english_sentences, make_bert_dir, make_family_dir

from shortstack.distillation.student import width
from shortstack.distillation.student.width import important_units, keep_units, products
from shortstack.model import Embedder

TEXT = english_sentences(100)


@pytest.fixture(params=["bert", "mpnet", "distilbert"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "bert":
        return make_bert_dir(tmp_path / "teacher", layers=3)
    return make_family_dir(tmp_path / "teacher", request.param)


def test_units_without_effect_go_and_nothing_changes(directory: Path, tmp_path: Path) -> None:
    teacher = Embedder.load(directory, "cpu", "fp32")
    student = teacher.keep_layers([0, 2])
    inner = products(student)[0][0].out_features
    live = sorted(np.random.default_rng(0).choice(inner, inner // 4, replace=False).tolist())
    with torch.no_grad():
        for _, output in products(student):
            output.weight[:, [unit for unit in range(inner) if unit not in live]] = 0
    before = student.encode(TEXT)
    units = important_units(student, student.tokenize(TEXT), len(live))
    assert units == [live, live]
    keep_units(student, units)
    np.testing.assert_allclose(student.encode(TEXT), before, atol=1e-6)
    student.save(tmp_path / "narrow")
    for loaded in (Embedder.load(tmp_path / "narrow", "cpu", "fp32"), SentenceTransformer(str(tmp_path / "narrow"))):
        np.testing.assert_allclose(loaded.encode(TEXT), before, atol=1e-5)
    assert products(teacher)[0][0].out_features == inner  # the teacher keeps its own


def test_importance_is_how_far_a_gate_moves_the_embeddings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(width, "BATCH", 1)  # of batches the squares are added, so that more of them mean less chance
    student = Embedder.load(make_bert_dir(tmp_path, layers=1, hidden=8, heads=2, intermediate_size=6), "cpu", "fp32")
    with torch.no_grad():
        products(student)[0][1].weight *= torch.tensor([4.0, 1.0, 32.0, 2.0, 16.0, 8.0])
    student = student.keep_layers([0])  # the same weights, prepared again
    tokens = student.tokenize(TEXT)

    def embeddings(unit: int, gate: float) -> torch.Tensor:
        changed = student.keep_layers([0])
        with torch.no_grad():
            products(changed)[0][1].weight[:, unit] *= gate
            return changed.embed(tokens)

    moved = [float((embeddings(unit, 1.01) - embeddings(unit, 0.99)).square().sum()) for unit in range(6)]
    (order,) = important_units(student, tokens, 3)
    assert order == sorted(np.argsort(moved)[-3:].tolist())


def test_a_narrow_run_ends_the_same_after_a_stop_and_on_two_ranks(tiny_model_dir: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_model_dir, intermediate_size=48)
    assert train(recipe).status == 0
    runs = [RunDirectory(tmp_path / "runs" / name) for name in ("tiny", "stopped", "two")]
    assert runs[0].json("model/config.json")["intermediate_size"] == 48
    assert runs[0].logged("negative_mse")[10] > runs[0].logged("negative_mse")[0]
    stop = functools.partial(hooks.signal_at_step, signal.SIGTERM, 7)
    assert train(recipe, "--name", "stopped", before=stop).status == 1
    assert train(recipe, "--name", "stopped", "--resume").status == 0
    assert_same_run(runs[1], runs[0])
    assert [each.status for each in forked_ranks(2, recipe, "--name", "two")] == [0, 0]
    one, two = (Embedder.load(run.path / "model", "cpu", "fp32").encode(TEXT) for run in (runs[0], runs[2]))
    np.testing.assert_allclose(two, one, atol=1e-4)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--intermediate-size", "128"], "128 must be below the teacher's 128"),
        (["--intermediate-size", "-1"], "must be 0 or more"),
        (["--intermediate-size", "9", "--start-from", "x"], "must be 0 beside start_from"),
    ],
)
def test_a_width_that_can_not_be_is_refused(tiny_model_dir: Path, tmp_path: Path, flags: list[str], line: str) -> None:
    outcome = train(write_recipe(tmp_path, tiny_model_dir), *flags)
    assert outcome.status == 2 and line in outcome.error
