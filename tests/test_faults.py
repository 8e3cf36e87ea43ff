"""What can go wrong around a run: each fault is told in one line, and nothing that was finished is lost.

docs/reliability.md lists these tests with what the user sees.
"""

import functools
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hooks
import pytest
import torch
from processes import ROOT, Forked, RunDirectory, assert_same_run, same_weights, train, wait_until, write_recipe
from safetensors.torch import load_file, save_file

from shortstack.model import Embedder
from shortstack.model.tensors import load_tensors, save_tensors

STEPS = 20


@pytest.fixture
def recipe(tmp_path: Path, tiny_model_dir: Path) -> Path:
    return write_recipe(tmp_path, tiny_model_dir, epochs=2, save_every=5)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> RunDirectory:
    """The run of `recipe` without a fault."""
    recipe = write_recipe(tmp_path_factory.mktemp("undisturbed"), tiny_model_dir, epochs=2, save_every=5)
    assert train(recipe).status == 0
    return RunDirectory(recipe.parent / "runs" / "tiny")


def stopped_at_12(recipe: Path) -> Path:
    """Let the recipe's run be stopped after step 12; returns its checkpoints."""
    assert train(recipe, before=functools.partial(hooks.signal_at_step, signal.SIGTERM, 12)).status == 1
    return run_of(recipe).path / "checkpoints"


def run_of(recipe: Path) -> RunDirectory:
    return RunDirectory(recipe.parent / "runs" / "tiny")


def only(paths: Iterator[Path]) -> Path:
    [path] = paths
    return path


def assert_goes_on(recipe: Path, undisturbed: RunDirectory) -> None:
    """The same command with --resume ends as if nothing had been."""
    ended = train(recipe, "--resume")
    assert ended.status == 0, ended.err
    assert_same_run(run_of(recipe), undisturbed)
    assert RunDirectory(recipe.parent / "runs").leftovers() == []


# -- a full disk -----------------------------------------------------------------------------------------------------

FULL_DISK = "no space left to write; free some or choose another --output, then run again"
FULL = {  # what is written in another way each: the text's spool, a tensor file, a line added to the log
    "text": (functools.partial(hooks.limit_file_size, 4096), "runs/corpus/"),
    "checkpoint": (functools.partial(hooks.full_disk_while_saving, call=2, size=4096), "checkpoints/last.safetensors"),
    "log": (functools.partial(hooks.full_disk_while_logging, call=4), "runs/tiny/log.jsonl"),
}


@pytest.mark.parametrize("place", FULL)
def test_full_disk(recipe: Path, undisturbed: RunDirectory, place: str) -> None:
    """In the text, a checkpoint and the log; tests/test_files.py has all files that are written at once."""
    before, name = FULL[place]
    ended = train(recipe, before=before)
    assert ended.status == 1 and ended.error.endswith(FULL_DISK) and name in ended.error
    if place == "log":
        assert not (run_of(recipe).path / "log.jsonl").read_text().endswith("\n")  # the last line is cut short
    if place == "checkpoint":
        again = train(recipe, "--resume", before=functools.partial(hooks.signal_at_step, signal.SIGTERM, 1))
        assert "going on after step 5 of 20" in again.out  # the earlier checkpoint is whole
    assert_goes_on(recipe, undisturbed)


# -- damaged files ---------------------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


DAMAGES = {"flipped bit": (hooks.flip_bit, "checksum does not match"), "truncated": (truncate, "truncated")}


@pytest.mark.parametrize(
    ("name", "damage"), [("00000.safetensors", "flipped bit"), ("evaluation.safetensors", "truncated")]
)
def test_a_damaged_shard_is_labelled_again(recipe: Path, undisturbed: RunDirectory, name: str, damage: str) -> None:
    assert train(recipe).status == 0
    shard = only((recipe.parent / "runs" / "labels").rglob(name))
    whole = {name: tensor.clone() for name, tensor in load_file(shard).items()}
    apply, reason = DAMAGES[damage]
    apply(shard)
    ended = train(recipe)
    assert ended.status == 0
    [line] = [line for line in ended.out.splitlines() if "labelling it again" in line]
    assert line.startswith(f"{shard}: {reason}")
    assert all(torch.equal(tensor, whole[name]) for name, tensor in load_file(shard).items())
    assert same_weights(run_of(recipe), undisturbed)


def test_a_shard_that_is_damaged_during_the_run(recipe: Path, undisturbed: RunDirectory) -> None:
    name = "00000.safetensors"
    ended = train(recipe, before=functools.partial(hooks.damage_after_labelling, name))
    shard = only((recipe.parent / "runs" / "labels").rglob(name))
    assert ended.status == 2
    assert ended.error == (
        f"error: {shard}: checksum does not match, the file is damaged; run again with --resume: the shard is then "
        "labelled again"
    )
    assert_goes_on(recipe, undisturbed)


@pytest.mark.parametrize("damage", DAMAGES)
def test_after_a_damaged_checkpoint_the_one_before_it_is_taken(
    recipe: Path, undisturbed: RunDirectory, damage: str
) -> None:
    last = stopped_at_12(recipe) / "last.safetensors"
    apply, reason = DAMAGES[damage]
    apply(last)
    ended = train(recipe, "--resume")
    assert ended.status == 0 and "going on after step 10 of 20" in ended.out
    [line] = [line for line in ended.out.splitlines() if "taking the checkpoint before it" in line]
    assert line.startswith(f"{last}: {reason}")
    assert_same_run(run_of(recipe), undisturbed)


@pytest.mark.parametrize("damage", DAMAGES)
def test_two_damaged_checkpoints_are_refused(recipe: Path, undisturbed: RunDirectory, damage: str) -> None:
    last = stopped_at_12(recipe) / "last.safetensors"
    apply, reason = DAMAGES[damage]
    for path in (last, last.with_stem("earlier")):
        apply(path)
    left = last.read_bytes()
    ended = train(recipe, "--resume")
    assert ended.status == 2
    assert ended.error.startswith(f"error: {last}: {reason}") and ended.error.endswith("start again without --resume")
    assert last.read_bytes() == left
    assert train(recipe).status == 0  # the advice; the damaged run is moved aside
    assert same_weights(run_of(recipe), undisturbed)
    assert (recipe.parent / "runs" / "tiny.1" / "checkpoints" / "last.safetensors").read_bytes() == left


def make_older(path: Path) -> None:
    """Let weights be of the run's start."""
    tensors, state = load_tensors(path)
    save_tensors(path, {name: tensor.clone() for name, tensor in tensors.items()}, state | {"step": 0})


@pytest.mark.parametrize("damage", [*DAMAGES, "missing", "of an earlier step"])
def test_damaged_best_weights_are_chosen_again(recipe: Path, undisturbed: RunDirectory, damage: str) -> None:
    best = stopped_at_12(recipe) / "best.safetensors"
    others = {"missing": (os.unlink, "no such file"), "of an earlier step": (make_older, "is of an earlier step")}
    apply, reason = (DAMAGES | others)[damage]
    apply(best)
    ended = train(recipe, "--resume")
    assert ended.status == 0
    [line] = [line for line in ended.out.splitlines() if "the best step is chosen among those from here on" in line]
    assert line.startswith(f"{best}: {reason}")
    assert same_weights(run_of(recipe), undisturbed)  # whose best came after step 12


# -- numbers that are none -------------------------------------------------------------------------------------------


def test_steps_with_nan_are_skipped_and_counted(recipe: Path) -> None:
    ended = train(recipe, before=functools.partial(hooks.nan_losses, 8, 10))
    assert ended.status == 0
    assert "warning: 3 steps were skipped because their gradient was not finite" in ended.out
    run = run_of(recipe)
    assert run.logged("skipped_steps") == {10: 3, 20: 3}
    assert all(tensor.isfinite().all() for tensor in run.weights.values())
    assert run.logged("negative_mse")[20] > run.logged("negative_mse")[0]
    assert run.logged("grad_norm")[10] is None and run.logged("loss")[10] is None  # NaN is no JSON
    assert run.logged("loss")[20] is not None


def test_too_many_nan_steps_stop_the_run_and_the_best_is_kept(recipe: Path, undisturbed: RunDirectory) -> None:
    ended = train(
        recipe, "--max-skipped-steps", "3", "--log-every", "1", before=functools.partial(hooks.nan_losses, 12, 1000)
    )
    run = run_of(recipe)
    best = run.path / "checkpoints" / "best.safetensors"
    assert ended.status == 1
    assert ended.error == (
        f"error: 3 steps in a row had a gradient that is not finite; the best weights (step 10) are in {best}; "
        "lower --learning-rate or give --precision fp32"
    )
    student = Embedder.load(undisturbed.path / "model", "cpu", "fp32")
    student.load_state_dict(load_file(best))
    assert all(tensor.isfinite().all() for tensor in student.state_dict().values())
    assert "NaN" not in (run.path / "log.jsonl").read_text()


def test_a_teacher_that_gives_nan_is_refused(recipe: Path, model_copy: Path) -> None:
    tensors = load_file(model_copy / "model.safetensors")
    tensors["encoder.layer.5.output.LayerNorm.weight"][3] = 3e38  # finite, but what it multiplies is not
    save_file(tensors, model_copy / "model.safetensors", metadata={"format": "pt"})
    ended = train(recipe, "--teacher", str(model_copy))
    assert ended.status == 1
    assert ended.error.startswith("error: the teacher's embedding of '")
    assert ended.error.endswith("is not finite; try --precision fp32")
    assert not list((recipe.parent / "runs").rglob("*.safetensors"))


# -- places ----------------------------------------------------------------------------------------------------------


def test_a_read_only_place_is_named(tiny_model_dir: Path) -> None:
    """As a user who may read everything and write nothing."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        place = Path(name)
        recipe = write_recipe(place, Path(shutil.copytree(tiny_model_dir, place / "teacher")))
        runs = place / "runs"
        runs.mkdir()
        for path in (place, runs):
            path.chmod(0o555)
        ended = train(recipe, before=hooks.become_nobody)
        assert ended.status == 1
        assert ended.error.startswith(f"error: {runs}/")
        assert "not writable or readable (Permission denied)" in ended.error
        assert not list(runs.iterdir())
        place.chmod(0o755)


def test_two_runs_in_one_directory(recipe: Path, undisturbed: RunDirectory) -> None:
    first = Forked(recipe, before=functools.partial(hooks.slow_steps, 0.3))
    log = run_of(recipe).path / "log.jsonl"
    wait_until(lambda: log.exists() and log.stat().st_size)
    for arguments in ([], ["--resume"]):
        second = train(recipe, *arguments)
        assert second.status == 2
        assert second.error == (
            f"error: {run_of(recipe).path}: another run is at work there; give this one another --name"
        )
    first.process.kill()  # and the lock is free
    first.process.join()
    assert_goes_on(recipe, undisturbed)


def test_two_runs_on_one_corpus_at_the_same_time(recipe: Path, undisturbed: RunDirectory) -> None:
    """They share text and labels, and neither spoils the other's."""
    names = ("a", "b", "c")
    started = [Forked(recipe, "--name", name) for name in names]
    assert [each.outcome().status for each in started] == [0, 0, 0]
    for name in names:
        assert same_weights(RunDirectory(recipe.parent / "runs" / name), undisturbed)
    assert RunDirectory(recipe.parent / "runs").leftovers() == []


# -- what is never read ----------------------------------------------------------------------------------------------


def test_no_pickle_is_read_but_the_weights_of_a_teacher() -> None:
    """Labels, checkpoints and models of ours are safetensors; a .bin teacher is read with weights_only=True."""
    packages = ("model", "distillation", "benchmark")
    sources = [*ROOT.glob("*.py"), *(path for package in packages for path in ROOT.glob(f"{package}/**/*.py"))]
    found = [line.strip() for path in sources for line in path.read_text().splitlines() if "torch.load(" in line]
    assert found == ['tensors = torch.load(path, map_location="cpu", weights_only=True)']
    assert not any(re.search(r"\b(import|from) pickle\b", path.read_text()) for path in sources)
    assert not any("trust_remote_code=True" in path.read_text() for path in sources)


# -- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 has"), MemoryError()],
    ids=lambda error: type(error).__name__,
)
def test_out_of_memory_names_the_settings(recipe: Path, undisturbed: RunDirectory, error: Exception) -> None:
    ended = train(recipe, before=functools.partial(hooks.raise_at_step, error, 8))
    assert ended.status == 1
    advice = "train: raise --gradient-accumulation, or lower --batch-size or --max-length; bench: lower --batch-size"
    assert ended.error.startswith(f"error: out of memory: {advice} (")
    assert_goes_on(recipe, undisturbed)
