"""A thousand changed, exchanged and outdated files of labels, checkpoints and models: each is found."""

import functools
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import hooks
import pytest
from processes import train, write_recipe
from tiny import load, make_bert_dir

from shortstack.distillation.data.labels import read_shard
from shortstack.distillation.training.checkpoint import read_weights
from shortstack.model.files import InputError
from shortstack.model.tensors import load_tensors

NOT_COVERED = ("README.md",)  # the model card is for people, who may edit it


def make_run(place: Path, teacher: Path, *flags: str) -> Path:
    """The output directory of a run that was stopped at step 13 of 20 and, as `done`, of the same run at its end."""
    recipe = write_recipe(place, teacher, epochs=2, save_every=5, evaluate_every=5, shard_size=64)
    stop = functools.partial(hooks.signal_at_step, signal.SIGTERM, 13)
    assert train(recipe, *flags, before=stop).status == 1
    shutil.copytree(place / "runs" / "tiny", place / "stopped")
    ended = train(recipe, "--resume", *flags)
    assert ended.status == 0, ended.err
    return place


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> tuple[Path, list[Path]]:
    """A run, and others whose files could be taken for its own: of another teacher, and of another seed."""
    place = tmp_path_factory.mktemp("identity")
    other = make_bert_dir(place / "teacher", seed=9)
    this = make_run(place / "this", tiny_model_dir)
    return this, [make_run(place / "taught", other), make_run(place / "seeded", tiny_model_dir, "--seed", "1")]


def labels_of(run: Path) -> Path:
    [directory] = {path.parent for path in (run / "runs" / "labels").rglob("*.safetensors")}
    return directory


def flip(path: Path, draw: random.Random) -> str:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    return "flipped"


def replaced(path: Path, others: list[Path], draw: random.Random) -> str:
    """Another file in its place, one with other content."""
    others = [other for other in others if other.is_file() and other.read_bytes() != path.read_bytes()]
    if not others:
        return flip(path, draw)
    chosen = draw.choice(others)
    shutil.copyfile(chosen, path)
    return f"replaced by {chosen}"


def attack(
    runs: tuple[Path, list[Path]], settings: dict[str, str], copy: Path, draw: random.Random
) -> tuple[str, Callable[[], object]]:
    """Change one file of a copy of the run; returns what was done, and the reading that must find it."""
    this, others = runs
    kind = draw.choice(["shard", "checkpoint", "best", "model"])
    if kind == "shard":
        labels = labels_of(this)
        path = Path(shutil.copytree(labels, copy)) / draw.choice(sorted(labels.glob("*.safetensors"))).name
        neighbours = [other for other in path.parent.glob("*.safetensors") if other != path]
        theirs = [labels_of(other) / path.name for other in others]
        read: Callable[[], object] = functools.partial(read_shard, path, settings["labels"])
    elif kind == "model":
        path = Path(shutil.copytree(this / "runs" / "tiny" / "model", copy))
        files = [file for file in sorted(path.rglob("*")) if file.is_file() and file.name not in NOT_COVERED]
        read, path = functools.partial(load, path), draw.choice(files)
        neighbours = [file for file in files if file != path]
        theirs = [other / "runs" / "tiny" / "model" / path.relative_to(copy) for other in others]
    else:
        name = "best" if kind == "best" else draw.choice(["last", "earlier"])
        path = Path(shutil.copytree(this / "stopped" / "checkpoints", copy)) / f"{name}.safetensors"
        neighbours = [path.with_stem(other) for other in (("last", "earlier") if kind == "best" else ("best",))]
        theirs = [other / "stopped" / "checkpoints" / path.name for other in others]
        read = functools.partial(read_weights if kind == "best" else read_checkpoint, path, settings["run"])
    done = flip(path, draw) if draw.random() < 0.5 else replaced(path, [*neighbours, *theirs], draw)
    return f"{path}: {done}", read


def read_checkpoint(path: Path, settings: str) -> None:
    """As a run that goes on reads it: the file, then whether it is of these settings, text and teacher."""
    _, state = load_tensors(path)
    if not isinstance(state, dict) or state.get("recipe") != settings:
        raise InputError("is of another run")


@pytest.mark.parametrize("count", [80, pytest.param(1000, marks=pytest.mark.long)])
def test_every_changed_file_is_found(runs: tuple[Path, list[Path]], tmp_path: Path, count: int) -> None:
    this, draw = runs[0], random.Random(count)
    _, state = load_tensors(this / "stopped" / "checkpoints" / "last.safetensors")
    settings = {"run": state["recipe"], "labels": state["recipe"].split()[1]}
    missed = []
    for number in range(count):
        copy = tmp_path / str(number)
        what, read = attack(runs, settings, copy, draw)
        try:
            read()
            missed.append(what)
        except InputError:
            pass
        shutil.rmtree(copy)
    assert missed == []
