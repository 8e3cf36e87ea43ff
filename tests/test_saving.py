"""Saving a model: all or nothing, and only over a model."""

import json
import resource
from pathlib import Path

import numpy as np
import pytest
from processes import in_child
from test_directory import TEXTS, assert_loads
from tiny import contents, edit, load, make_bert_dir

from shortstack.distillation.command_line import run_command
from shortstack.model.files import InputError


@pytest.fixture(scope="module")
def wanted(tiny_model_dir: Path) -> np.ndarray:
    return np.asarray(load(tiny_model_dir).encode(TEXTS))


def test_a_model_is_replaced_by_another(tiny_model_dir: Path, tmp_path: Path, wanted: np.ndarray) -> None:
    place = tmp_path / "model"
    make_bert_dir(place, layers=2, seed=7)
    (place / "onnx").mkdir()
    (place / "onnx" / "model.onnx").write_text("of the old model")
    load(tiny_model_dir).save(place)
    assert_loads(place, wanted)
    assert not (place / "onnx").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_every_file_says_the_same_maximum_length(model_copy: Path, tmp_path: Path) -> None:
    """fastembed reads the smaller of the tokenizer's two lengths, of which transformers keeps one up to date."""
    edit(model_copy / "tokenizer_config.json", max_length=5, model_max_length=512)
    load(model_copy).save(tmp_path / "again")
    values = json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())
    assert values["max_length"] == values["model_max_length"] == load(model_copy).settings.max_length == 64
    special = json.loads((tmp_path / "again" / "special_tokens_map.json").read_text())
    assert special["cls_token"] == "[CLS]" and special["pad_token"] == "[PAD]"
    library = json.loads((tmp_path / "again" / "config_sentence_transformers.json").read_text())
    assert library["model_type"] == "SentenceTransformer"


def test_a_model_is_saved_over_its_own_source(model_copy: Path, wanted: np.ndarray) -> None:
    embedder = load(model_copy)
    student = embedder.keep_layers([0, 3])
    student.save(model_copy)
    np.testing.assert_allclose(embedder.encode(TEXTS), wanted, atol=1e-6)  # nothing of it lived in the old files
    np.testing.assert_allclose(load(model_copy).encode(TEXTS), student.encode(TEXTS), atol=1e-6)


def test_what_is_no_model_is_not_replaced(tiny_model_dir: Path, tmp_path: Path) -> None:
    embedder = load(tiny_model_dir)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear")
    (tmp_path / "file").write_text("x")
    for name in ("thesis", "clone"):  # a config of anything; a clone of a model of the Hub
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "thesis" / "train_model.sh").write_text("")
    (tmp_path / "clone" / "model.safetensors").write_text("")
    (tmp_path / "clone" / ".git").mkdir()
    before = contents(tmp_path)
    with pytest.raises(InputError, match="clone: is a git repository, so it is not replaced"):
        embedder.save(tmp_path / "clone")
    for name in ("letters", "file", "thesis"):
        with pytest.raises(InputError, match=f"{tmp_path / name}: exists and is not a model, so it is not replaced"):
            embedder.save(tmp_path / name)
    assert contents(tmp_path) == before
    (tmp_path / "empty").mkdir()
    embedder.save(tmp_path / "empty")
    assert load(tmp_path / "empty")


@pytest.mark.parametrize("limit", [200, 1000, 20_000, 250_000])
def test_a_full_disk_while_saving_keeps_the_old_model(model_copy: Path, tmp_path: Path, limit: int) -> None:
    """No file can grow beyond `limit`: another library's file each time is the one at which the disk is full."""
    student, before = load(model_copy).keep_layers(range(6)), contents(model_copy)
    assert max(len(content) for content in before.values()) > limit

    def save() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        run_command(lambda: student.save(model_copy))

    status, line = in_child(save, tmp_path / "errors")
    assert status == 1, line
    assert line.startswith(f"error: {model_copy}: no space left to write") and line.count("\n") == 1
    assert contents(model_copy) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "errors"]
