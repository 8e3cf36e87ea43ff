"""A run meets a kill, EIO and ENOSPC at every operation on its files: nothing is lost, nothing is left behind."""

import errno
import functools
import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import hooks
import operations
import pytest
from processes import RunDirectory, same_weights, train, write_recipe
from tiny import contents

FAULTS = {"killed": 0, "EIO": errno.EIO, "ENOSPC": errno.ENOSPC}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> tuple[Path, RunDirectory, int]:
    """A recipe, its run without a fault, and the number of operations on files that it takes."""
    place = tmp_path_factory.mktemp("undisturbed")
    recipe = write_recipe(place, tiny_model_dir, sentences=120, epochs=1, save_every=2, evaluate_every=2)
    counted = place / "counted"
    before = functools.partial(operations.fault_at_operation, place / "runs", 0, 0, counted)
    assert train(recipe, before=before).status == 0
    run = RunDirectory(place / "runs.whole" / "tiny")
    (place / "runs").rename(place / "runs.whole")
    return recipe, run, int(counted.read_text())


@pytest.fixture(scope="module")
def seen() -> set[str]:
    """States in which a fault left the files, and from which a run went on well."""
    return set()


def state_of(place: Path) -> str:
    """All that decides how a run goes on: its files, but for what is random in names, and for speeds in the log."""
    found = []
    for name, content in contents(place).items():
        if "tensorboard" not in name:
            name = re.sub(r"[0-9a-f]{8}(?=\.(tmp|old))|(?<=\.spool\.)\w+", "", name)
            found.append((name, re.sub(rb'"sentences_per_second": [^,}]*', b"", content)))
    return hashlib.sha256(repr(sorted(found)).encode()).hexdigest()


def count_operations(before: Callable, place: Path, counted: Path) -> int:
    assert (
        train(
            before=functools.partial(before, functools.partial(operations.fault_at_operation, place, 0, 0, counted))
        ).status
        == 0
    )
    return int(counted.read_text())


def check_handing_over(
    before: Callable, place: Path, whole: dict[str, bytes], number: int, fault: int, seen: set[str]
) -> bool:
    """A fault while a finished run is reported or exported: what was there is whole, and the next try ends well.

    Returns whether it ended by the fault: that a directory can't be made does no harm if it is there.
    """
    where = f"operation {number}"
    nothing = functools.partial(operations.fault_at_operation, place, -1, 0, Path())
    ended = train(
        before=functools.partial(before, functools.partial(operations.fault_at_operation, place, number, fault, Path()))
    )
    assert "Traceback" not in ended.err, f"{where}: {ended.err}"
    assert ended.status in ((0, -9) if fault == 0 else (0, 1, 2)), f"{where}: {ended}"
    now = contents(place)
    assert {name: now.get(name) for name in whole} == whole, where
    if (state := state_of(place)) not in seen:
        seen.add(state)
        again = train(before=functools.partial(before, nothing))
        assert again.status == 0, f"{where}: {ended} {again}"
        left = [path for path in place.rglob(".*") if path.name.endswith((".tmp", ".old"))]
        assert not left, f"{where}: {left}"
    return ended.status != 0


def check_operation(undisturbed: tuple[Path, RunDirectory, int], number: int, fault: int, seen: set[str]) -> None:
    """One operation fails; then the advice is followed, and the run ends as if nothing had happened."""
    recipe, whole, _ = undisturbed
    runs, where = recipe.parent / "runs", f"operation {number}"
    shutil.rmtree(runs, ignore_errors=True)
    before = functools.partial(operations.fault_at_operation, runs, number, fault, Path())
    ended = train(recipe, before=before)
    assert "Traceback" not in ended.err, f"{where}: {ended.err}"
    assert ended.status in ((-9,) if fault == 0 else (0, 1, 2)), f"{where}: {ended}"
    if (state := state_of(runs)) in seen:
        return
    seen.add(state)
    begun = (runs / "tiny" / "recipe.toml").exists()
    again = train(recipe, *(["--resume"] if begun else []))
    assert again.status == 0, f"{where}: {ended} {again}"
    assert same_weights(RunDirectory(runs / "tiny"), whole), where
    left = [path for path in runs.rglob(".*") if path.name.endswith((".tmp", ".old")) or path.name.startswith(".tmp")]
    assert not left, f"{where}: {left}"


@pytest.mark.parametrize("fault", FAULTS)
def test_some_operations(undisturbed: tuple[Path, RunDirectory, int], seen: set[str], fault: str) -> None:
    """Three of them here, spread over the run; all of them in `make test-long`."""
    for share in (0.15, 0.5, 0.85):
        check_operation(undisturbed, int(share * undisturbed[2]), FAULTS[fault], seen)


@pytest.mark.long
@pytest.mark.parametrize("fault", FAULTS)
def test_every_operation(undisturbed: tuple[Path, RunDirectory, int], seen: set[str], fault: str) -> None:
    for number in range(1, undisturbed[2] + 1):
        check_operation(undisturbed, number, FAULTS[fault], seen)


@pytest.mark.parametrize(
    "kind, fault, share",
    [
        ("report", "EIO", 0.6),
        *(pytest.param("report", fault, 0.0, marks=pytest.mark.long) for fault in FAULTS),
        *(pytest.param("export", fault, 0.0, marks=pytest.mark.long) for fault in FAULTS),
    ],
)
def test_handing_over(
    undisturbed: tuple[Path, RunDirectory, int], tmp_path: Path, kind: str, fault: str, share: float
) -> None:
    """One operation of a report here; in `make test-long` every one of a report and of an export."""
    run = tmp_path / "tiny"
    shutil.copytree(undisturbed[1].path, run)
    if kind == "report":
        before: Callable = functools.partial(hooks.report_instead, run)
    else:
        before = functools.partial(hooks.export_instead, run / "model")
    whole = {name: content for name, content in contents(run).items() if name != "model/README.md"}
    count = count_operations(before, run, tmp_path / "counted")
    numbers, ended, seen = [int(share * count)] if share else range(1, count + 1), [], set[str]()
    for number in numbers:
        shutil.rmtree(run)
        shutil.copytree(undisturbed[1].path, run)
        ended.append(check_handing_over(before, run, whole, number, FAULTS[fault], seen))
    assert sum(ended) > len(ended) / 2
