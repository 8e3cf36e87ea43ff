"""Where a model is: a directory, or a repository of the Hugging Face Hub at a commit."""

import os
import re
from pathlib import Path

from huggingface_hub import snapshot_download

from shortstack.model.files import InputError, first_line

# What is downloaded beside the weights; no ONNX and the like.
HUB_FILES = ["*.json", "*.txt", "*/config.json", "*/model.safetensors", "*/pytorch_model.bin"]
HUB_FILES += ["int8_calibration.safetensors"]
OUR_FOLDERS = ("assets", "runs")  # never names of Hub users, whether these folders exist or not
FILE_ENDINGS = (".csv", ".gz", ".json", ".jsonl", ".md", ".ndjson", ".parquet", ".toml", ".tsv", ".txt", ".xml")
WEIGHT_ENDINGS = (".bin", ".gguf", ".onnx", ".pt", ".pth", ".safetensors", ".tar", ".zip", ".zst")


def local_directory(name: str) -> Path:
    """The directory of a model: `name` itself, or a download of the Hub repository NAME or NAME@COMMIT.

    Raises:
        InputError: it is neither. The Hub is not asked for what looks like a path.
    """
    if os.path.isdir(name):
        return Path(name)
    repository, _, commit = name.partition("@")
    if looks_like_a_path(repository):
        raise InputError(f"{name}: no such model directory")
    revision = commit or None
    try:
        patterns = [*HUB_FILES, "model*.safetensors"]
        directory = Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
        if not list(directory.glob("model*.safetensors")):
            patterns = [*HUB_FILES, "pytorch_model.bin"]
            directory = Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
        return directory
    except Exception as error:  # the Hub's errors, the network's, and the disk's
        reason = first_line(error)
        raise InputError(f"{name}: no such directory, and the Hub gave no model of that name ({reason})") from None


def looks_like_a_path(name: str) -> bool:
    """Whether a name means a file or directory, even a missing one, rather than a repository of the Hub."""
    first, slash, _ = name.partition("/")
    return (
        name.startswith((".", "/", "~"))
        or "\\" in name
        or name.count("/") > 1
        or name.lower().endswith(FILE_ENDINGS + WEIGHT_ENDINGS)
        or first in OUR_FOLDERS
        or (bool(slash) and os.path.exists(first))
        or os.path.exists(name)
    )


def commit_of(directory: Path) -> str | None:
    """The commit of a repository that was downloaded to `directory`; None for any other directory."""
    is_download = directory.parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", directory.name)
    return directory.name if is_download else None
