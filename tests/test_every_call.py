"""A run meets a kill, EIO and ENOSPC at every operation on its files: nothing is lost, nothing is left behind."""

import errno
import functools
import shutil
from pathlib import Path

import hooks
import pytest
from processes import RunDirectory, same_weights, train, write_recipe

FAULTS = {"killed": 0, "EIO": errno.EIO, "ENOSPC": errno.ENOSPC}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> tuple[Path, RunDirectory, int]:
    """A recipe, its run without a fault, and the number of operations on files that it takes."""
    place = tmp_path_factory.mktemp("undisturbed")
    recipe = write_recipe(place, tiny_model_dir, sentences=120, epochs=1, save_every=2, evaluate_every=2)
    counted = place / "counted"
    before = functools.partial(hooks.fault_at_operation, place / "runs", 0, 0, counted)
    assert train(recipe, before=before).status == 0
    run = RunDirectory(place / "runs.whole" / "tiny")
    (place / "runs").rename(place / "runs.whole")
    return recipe, run, int(counted.read_text())


def check_operation(undisturbed: tuple[Path, RunDirectory, int], number: int, fault: int) -> None:
    """One operation fails; then the advice is followed, and the run ends as if nothing had happened."""
    recipe, whole, _ = undisturbed
    runs, where = recipe.parent / "runs", f"operation {number}"
    shutil.rmtree(runs, ignore_errors=True)
    before = functools.partial(hooks.fault_at_operation, runs, number, fault, Path())
    ended = train(recipe, before=before)
    assert "Traceback" not in ended.err, f"{where}: {ended.err}"
    assert ended.status in ((-9,) if fault == 0 else (0, 1, 2)), f"{where}: {ended}"
    begun = (runs / "tiny" / "recipe.toml").exists()
    again = train(recipe, *(["--resume"] if begun else []))
    assert again.status == 0, f"{where}: {ended} {again}"
    assert same_weights(RunDirectory(runs / "tiny"), whole), where
    left = [path for path in runs.rglob(".*") if path.name.endswith((".tmp", ".old")) or path.name.startswith(".tmp")]
    assert not left, f"{where}: {left}"


@pytest.mark.parametrize("fault", FAULTS)
def test_some_operations(undisturbed: tuple[Path, RunDirectory, int], fault: str) -> None:
    """Three of them here, spread over the run; all of them in `make test-long`."""
    for share in (0.15, 0.5, 0.85):
        check_operation(undisturbed, int(share * undisturbed[2]), FAULTS[fault])


@pytest.mark.long
@pytest.mark.parametrize("fault", FAULTS)
def test_every_operation(undisturbed: tuple[Path, RunDirectory, int], fault: str) -> None:
    for number in range(1, undisturbed[2] + 1):
        check_operation(undisturbed, number, FAULTS[fault])
