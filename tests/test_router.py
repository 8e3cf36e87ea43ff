"""The asymmetric pair: sentence-transformers embeds queries as the student does, documents as the teacher does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import AWKWARD, english_sentences, make_bert_dir

from shortstack.distillation.export import main
from shortstack.distillation.recipe import Recipe, recipe_text
from shortstack.distillation.router import write_router
from shortstack.model import Embedder
from shortstack.model.files import InputError

SENTENCES = [*english_sentences(12), *AWKWARD]
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "prompts, cls, not normalised": {
        "pooling": "cls", "normalize": False, "prompts": {"query": "who sees ", "document": "title "},
    },
    "dense, short": {"dense": (16, "torch.nn.modules.activation.Tanh"), "max_length": 12},
}  # fmt: skip


def make_run(directory: Path, **kind: Any) -> Path:
    """A run directory with a student of the teacher beside it; returns the student's path."""
    teacher = make_bert_dir(directory / "teacher", layers=3, **kind)
    model = directory / "runs" / "small" / "model"
    Embedder.load(teacher, "cpu", "fp32").keep_layers([0, 2]).save(model)
    (model.parent / "recipe.toml").write_text(recipe_text(Recipe(name="small", teacher=str(teacher), sentences=["a"])))
    return model


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_sentence_transformers_embeds_as_student_and_teacher_do(
    tmp_path: Path, kind: dict[str, Any], call: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = make_run(tmp_path, **kind)
    call(main, model, "--router")
    assert f"{model.parent / 'router'}" in capsys.readouterr().out
    router = sentence_transformers.SentenceTransformer(str(model.parent / "router"), device="cpu")
    pairs = [(router.encode_query, model, "query"), (router.encode_document, tmp_path / "teacher", "document")]
    for encode, directory, role in pairs:
        embedder = Embedder.load(directory, "cpu", "fp32")
        ours = embedder.encode(SENTENCES, prompt=embedder.role_prompt(role))
        np.testing.assert_allclose(encode(SENTENCES), ours, atol=1e-5)
    np.testing.assert_allclose(router.encode(SENTENCES[:2]), embedder.encode(SENTENCES[:2]), atol=1e-5)
    half = sentence_transformers.SentenceTransformer(str(model.parent / "router" / "query"), device="cpu")
    np.testing.assert_allclose(half.encode(SENTENCES), Embedder.load(model, "cpu", "fp32").encode(SENTENCES), atol=1e-5)


def test_what_can_be_no_router_is_refused(tmp_path: Path, refusal: Callable[..., str]) -> None:
    model = make_run(tmp_path)
    other = make_bert_dir(tmp_path / "other", layers=1, dense=(16, "torch.nn.modules.activation.Tanh"))
    assert "dimensions" in refusal(main, model, "--router", "--teacher", other)
    assert "give --teacher" in refusal(main, other, "--router")
    assert "--router" in refusal(main, model, "--teacher", other)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert "not replaced" in refusal(main, model, "--router", "--output", tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"


def test_a_router_that_is_there_is_replaced(tmp_path: Path) -> None:
    model = make_run(tmp_path)
    student, teacher = (Embedder.load(path, "cpu", "fp32") for path in (model, tmp_path / "teacher"))
    for _ in range(2):
        write_router(student, teacher, tmp_path / "router")
    assert sorted(path.name for path in (tmp_path / "router").iterdir()) == [
        "config_sentence_transformers.json", "document", "modules.json", "query", "router_config.json",
    ]  # fmt: skip
    with pytest.raises(InputError, match="modules Router; supported"):
        Embedder.load(tmp_path / "router")
