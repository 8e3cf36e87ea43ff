"""The power is lost in a run: only what was flushed to disk is kept, and `--resume` loses nothing that was saved."""

import functools
import random
import shutil
import sys
from pathlib import Path

import operations
import pytest
from disk import Disk, read_journal
from processes import RunDirectory, same_weights, train, write_recipe
from tiny import contents

from shortstack.model.tensors import load_tensors

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a journal names files by /proc/self/fd")

Recorded = tuple[Path, RunDirectory, list]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Recorded:
    """A recipe, its run with the power on, and all that it did to its files."""
    place = tmp_path_factory.mktemp("recorded")
    disk = place / "disk"
    recipe = write_recipe(
        place,
        tiny_model_dir,
        sentences=120,
        epochs=1,
        save_every=2,
        evaluate_every=2,
        log_every=1,
        output=str(disk / "runs"),
    )
    disk.mkdir()
    ended = train(recipe, before=functools.partial(operations.record_operations, disk, place / "journal"))
    assert ended.status == 0, ended
    (place / "whole").mkdir()
    (disk / "runs").rename(place / "whole" / "runs")
    return recipe, RunDirectory(place / "whole" / "runs" / "tiny"), read_journal(place / "journal")


def lose_power(recorded: Recorded, cut: int, draw: random.Random | None) -> None:
    """The power is lost after `cut` entries of the journal; then the run is resumed and ends as if it had not been."""
    recipe, whole, journal = recorded
    place = recipe.parent / "disk"
    disk, steps, shards, done = Disk(place), [0], [], False
    for kind, *details in journal[:cut]:
        if kind != "mark":
            disk.do(kind, *details)
        elif details[0] == "save_checkpoint":
            steps.append(details[1])
        elif details[0] == "write_shard":
            shards.append(details[1])
        else:
            done = True
    shutil.rmtree(place)
    place.mkdir()
    disk.restore(draw)
    where = f"cut {cut} of {len(journal)}"
    for shard in shards:
        load_tensors(shard)
    run = RunDirectory(place / "runs" / "tiny")
    if done:
        assert contents(run.path / "model") == contents(whole.path / "model"), where
        assert run.json("evaluation.json") == whole.json("evaluation.json"), where
    again = train(recipe, *(["--resume"] if (run.path / "recipe.toml").exists() else []))
    assert again.status == 0 and "damaged" not in again.out, f"{where}: {again}"
    assert max(steps) == 0 or int(again.out.partition("going on after step ")[2].split()[0]) >= max(steps), where
    assert same_weights(RunDirectory(run.path), whole), where
    assert run.logged("loss") == whole.logged("loss"), where
    left = [path for path in place.rglob(".*") if path.name.endswith((".tmp", ".old"))]
    assert not left, f"{where}: {left}"


def cuts(journal: list, count: int) -> list[int]:
    """Some cut points: all sorts of operations alike, and always the end."""
    return sorted({*random.Random(0).sample(range(1, len(journal)), min(count, len(journal) - 1) - 1), len(journal)})


def test_power_is_lost_in_a_run(recorded: Recorded) -> None:
    """A few cut points here, 200 in `make test-long`."""
    for cut in cuts(recorded[2], 3):
        lose_power(recorded, cut, None)


def test_some_of_what_was_not_flushed_is_kept(recorded: Recorded) -> None:
    for cut in cuts(recorded[2], 3):
        lose_power(recorded, cut, random.Random(cut))


@pytest.mark.long
@pytest.mark.parametrize("part", range(4))
def test_power_is_lost_at_200_points(recorded: Recorded, part: int) -> None:
    for number, cut in enumerate(cuts(recorded[2], 200)[part::4]):
        lose_power(recorded, cut, random.Random(cut) if number % 2 else None)
