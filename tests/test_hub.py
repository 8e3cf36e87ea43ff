"""Names of models: a directory, or the Hub's cache; the Hub is never asked for what looks like a path."""

import shutil
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
from test_directory import TEXTS, assert_loads, refused
from tiny import load

from shortstack.model import hub


@pytest.fixture(scope="module")
def wanted(tiny_model_dir: Path) -> np.ndarray:
    return np.asarray(load(tiny_model_dir).encode(TEXTS))


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache, with the Hub out of reach."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_hub_name_is_found_in_the_cache(hub_cache: Path, tiny_model_dir: Path, wanted: np.ndarray) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = hub_cache / "models--owner--tiny"
    shutil.copytree(tiny_model_dir, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    assert_loads("owner/tiny", wanted)
    assert load("owner/tiny").settings.origin == "owner/tiny"


@pytest.mark.parametrize("name", ["owner/missing", "missing", "-bad-/..name", "a b", "x" * 200])
def test_a_hub_name_that_is_not_there(hub_cache: Path, name: str) -> None:
    refused(name, "no such directory, and the Hub gave no model of that name")


def test_the_commit_of_a_hub_model_is_known_and_can_be_given(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def snapshot_download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision))
        return str(tmp_path / "snapshots" / ("f" * 40))

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    shutil.copytree(tiny_model_dir, tmp_path / "snapshots" / ("f" * 40))
    assert load("owner/tiny").settings.commit == "f" * 40
    assert load(f"owner/tiny@{'f' * 40}").settings.commit == "f" * 40
    assert asked == [("owner/tiny", None), ("owner/tiny", "f" * 40)]
    assert load(tiny_model_dir).settings.commit is None


@pytest.mark.parametrize(
    "name",
    ["assets/all-MiniLM-L6-v2", "runs/tiny", "runs", "here/model", "there.TXT", "a\\b", "owner/a.onnx"],
)
def test_the_hub_is_never_asked_for_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(hub, "snapshot_download", lambda *arguments, **named: pytest.fail("asked the Hub"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    refused(name, "no such model directory")


def test_names_with_versions_are_no_files() -> None:
    for name in ("BAAI/bge-small-en-v1.5", "owner/model.v2", "all-MiniLM-L6-v2", "bert-base-uncased"):
        assert not hub.looks_like_a_path(name)


@pytest.mark.parametrize("name", ["./missing", "../missing", "/missing", "runs/minilm-3/model", "~/missing"])
def test_a_missing_directory(hub_cache: Path, name: str) -> None:
    refused(name, "no such model directory")


def test_a_file_is_no_model_directory(model_copy: Path) -> None:
    refused(model_copy / "config.json", "no such model directory")
