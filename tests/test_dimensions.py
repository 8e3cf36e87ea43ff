"""Smaller embeddings: the dense layer keeps dot products best, and the field's tools load it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tiny import english_sentences, load, make_bert_dir, put

from shortstack.distillation.data.corpus import Draw, build_corpus
from shortstack.distillation.ranks import ALONE
from shortstack.distillation.student.dimensions import project_and_keep, project_teacher
from shortstack.model.files import InputError, read_json

SENTENCES = english_sentences(200)


@pytest.mark.parametrize("dimensions", [1, 8, 47])
def test_no_projection_keeps_the_dot_products_better(tiny_cls_dir: Path, dimensions: int) -> None:
    teacher = load(tiny_cls_dir)
    whole = teacher.encode(SENTENCES).astype(np.float64)
    project_teacher(teacher, SENTENCES, dimensions)
    small = teacher.encode(SENTENCES).astype(np.float64)
    assert small.shape == (len(SENTENCES), dimensions) and teacher.dimensions == dimensions

    gram = whole @ whole.T
    values = np.linalg.svd(whole, compute_uv=False)
    best = np.sqrt((values[dimensions:] ** 4).sum())  # Eckart and Young: no matrix of this rank is nearer
    found = np.linalg.norm(gram - small @ small.T)
    assert found == pytest.approx(best, rel=1e-3, abs=1e-5 * np.linalg.norm(gram))
    at_random = np.linalg.qr(np.random.default_rng(0).normal(size=(48, dimensions)))[0]
    assert best < 0.9 * np.linalg.norm(gram - (whole @ at_random) @ (whole @ at_random).T)


def test_directions_are_orthonormal_and_the_strongest_comes_first(tiny_cls_dir: Path) -> None:
    teacher = load(tiny_cls_dir)
    project_teacher(teacher, SENTENCES, 12)
    assert teacher.dense is not None and teacher.dense.bias is None
    weight = teacher.dense.weight.detach()
    torch.testing.assert_close(weight @ weight.T, torch.eye(12), atol=1e-5, rtol=0)
    strengths = np.square(teacher.encode(SENTENCES)).sum(axis=0)
    assert (np.diff(strengths) <= 0).all()


@pytest.mark.parametrize("fixture", ["tiny_model_dir", "tiny_cls_dir"])
def test_teacher_and_student_are_saved_in_the_fields_layout(
    request: pytest.FixtureRequest, tmp_path: Path, fixture: str
) -> None:
    teacher = load(request.getfixturevalue(fixture))
    project_teacher(teacher, SENTENCES, 10)
    for number, embedder in enumerate((teacher, teacher.keep_layers([0, 5]))):
        path = tmp_path / str(number)
        embedder.save(path)
        ours, theirs = embedder.encode(SENTENCES), SentenceTransformer(str(path), device="cpu")
        np.testing.assert_allclose(theirs.encode(SENTENCES), ours, atol=1e-5)
        np.testing.assert_allclose(load(path).encode(SENTENCES), ours, atol=1e-5)
        if teacher.settings.normalize:
            np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)
    config = read_json(tmp_path / "1" / "2_Dense" / "config.json")
    assert config["in_features"] == teacher.bert.config.hidden_size
    assert config["out_features"] == 10 and config["bias"] is False


def test_a_projection_is_computed_once(tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Other last bits of the embeddings, as with other threads, must not make other labels."""
    corpus = build_corpus(tmp_path, [put(tmp_path / "a.txt", "\n".join(SENTENCES))], Draw(None, 20, 1))
    weights = []
    for sentences in (SENTENCES, SENTENCES[:150]):
        teacher = load(tiny_model_dir)
        project_and_keep(teacher, corpus, sentences, 8, tmp_path / "labels", ALONE)
        assert teacher.dense is not None
        weights.append(teacher.dense.weight)
    assert torch.equal(*weights)
    (file,) = (tmp_path / "labels").iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    project_and_keep(load(tiny_model_dir), corpus, SENTENCES, 8, tmp_path / "labels", ALONE)
    assert "computing it again" in capsys.readouterr().out


@pytest.mark.parametrize("dimensions", [32, 33, -1])
def test_only_fewer_dimensions_make_sense(tiny_model_dir: Path, dimensions: int) -> None:
    with pytest.raises(InputError, match=f"dimensions: {dimensions} must be below the teacher's 32"):
        project_teacher(load(tiny_model_dir), SENTENCES, dimensions)


def test_too_few_sentences(tiny_model_dir: Path) -> None:
    with pytest.raises(InputError, match="10 directions need at least as many sentences, got 9"):
        project_teacher(load(tiny_model_dir), SENTENCES[:9], 10)


def test_a_teacher_with_a_dense_layer(tmp_path: Path) -> None:
    teacher = load(make_bert_dir(tmp_path / "dense", dense=(16, "torch.nn.modules.activation.Tanh")))
    with pytest.raises(InputError, match="has a dense layer of its own"):
        project_teacher(teacher, SENTENCES, 8)
