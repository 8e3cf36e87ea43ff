"""Several processes: the same run as one, shared work, and what happens when one is lost, hangs or is stopped."""

import functools
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import hooks
import numpy as np
import pytest
import torch
from processes import (
    LIMIT,
    TRAIN,
    Forked,
    Outcome,
    RunDirectory,
    assert_same_run,
    forked_ranks,
    free_port,
    launch,
    same_weights,
    start_ranks,
    train,
    wait_until,
    write_recipe,
)
from tiny import english_sentences, make_family_dir

from shortstack.model import Embedder

TEST_TEXT = english_sentences(30, seed=9)
STEPS = 50


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """50 steps in shards of 16,384 sentences or, by `forked_ranks`, of 64."""
    directory = tmp_path_factory.mktemp("distributed")
    return write_recipe(directory, tiny_model_dir, sentences=240, batch_size=40, epochs=10, learning_rate=5e-4)


def torchrun(*arguments: str | Path, options: tuple[str, ...] = ("--standalone", "--nproc-per-node", "2"),
             **environment: str) -> subprocess.Popen[str]:  # fmt: skip
    """Start `torchrun OPTIONS train.py ARGUMENTS`."""
    call = [sys.executable, "-m", "torch.distributed.run", *options, TRAIN, *map(str, arguments)]
    return launch(call, **{"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "3"} | environment)


def outcome(process: subprocess.Popen[str]) -> Outcome:
    out, err = process.communicate(timeout=LIMIT)
    return Outcome(process.returncode, out, err)


def workers(process: subprocess.Popen[str], rank: int) -> list[int]:
    """Process numbers of those of a launcher's children that are this rank."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children if f"\0RANK={rank}\0" in Path(f"/proc/{child}/environ").read_text()]


needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="finds torchrun's ranks in Linux's /proc")


def steps_logged(run: RunDirectory) -> int:
    path = run.path / "log.jsonl"
    steps = re.findall(r'"step": (\d+)', path.read_text()) if path.exists() else []
    return int(steps[-1]) if steps else 0


# -- the same run ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_world(recipe: Path) -> dict[int, RunDirectory]:
    """Runs that log every step, on 1, 2 and 4 ranks; their shards are small, so that all ranks label some."""
    runs = {}
    for world in (1, 2, 4):
        output = recipe.parent / f"on {world}"
        note = functools.partial(hooks.note_shards, recipe.parent / f"shards-{world}")
        ended = forked_ranks(
            world, recipe, "--output", str(output), "--log-every", "1", "--shard-size", "64", before=note
        )
        assert [each.status for each in ended] == [0] * world, [each.err for each in ended]
        runs[world] = RunDirectory(output / "tiny")
        for each in ended[1:]:
            assert each.out == "" and each.err == ""  # only rank 0 prints
    return runs


@pytest.mark.parametrize("world", [2, 4])
def test_more_ranks_take_the_same_steps(by_world: dict[int, RunDirectory], world: int) -> None:
    one, many = by_world[1], by_world[world]
    assert list(one.logged("loss")) == list(range(1, STEPS + 1))
    assert many.logged("loss") == pytest.approx(one.logged("loss"), abs=1e-5, rel=1e-3)
    assert many.logged("grad_norm") == pytest.approx(one.logged("grad_norm"), abs=1e-4, rel=1e-2)
    assert many.logged("learning_rate") == one.logged("learning_rate")
    for key in ("negative_mse", "sts_dev_spearman_cosine"):  # measured by all ranks together
        assert many.logged(key) == pytest.approx(one.logged(key), abs=1e-4, rel=1e-3)
    ours, theirs = (Embedder.load(run.path / "model", "cpu", "fp32").encode(TEST_TEXT) for run in (many, one))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_each_shard_is_written_once_and_all_ranks_write(by_world: dict[int, RunDirectory], world: int) -> None:
    lines = (by_world[world].path.parents[1] / f"shards-{world}").read_text().split()
    names = [line.split(":")[1] for line in lines]
    assert sorted(names) == ["00000", "00001", "00002", "00003", "evaluation"]
    assert len({line.split(":")[0] for line in lines}) == world
    shards = {path.name: path.read_bytes() for path in (by_world[world].path.parent / "labels").rglob("*.safetensors")}
    assert sorted(name.removesuffix(".safetensors") for name in shards) == sorted(names)


@pytest.mark.parametrize("world", [2, 4])
def test_the_ranks_have_even_work(by_world: dict[int, RunDirectory], world: int) -> None:
    shares = list(by_world[world].logged("idle_share").values())
    assert 0 < np.mean(shares) < 0.05 and max(shares) < 0.2


def test_dropout_differs_between_ranks_and_comes_back(recipe: Path) -> None:
    runs = []
    for name in ("dropout-a", "dropout-b"):
        ended = forked_ranks(2, recipe, "--dropout", "0.1", "--epochs", "2", "--name", name)
        assert [each.status for each in ended] == [0, 0]
        runs.append(RunDirectory(recipe.parent / "runs" / name))
    assert same_weights(*runs)


def test_ranks_train_the_word_vectors_of_a_model_with_a_bias_by_position(tmp_path: Path) -> None:
    """MPNet keeps that bias outside of its layers; without any, no loss depends on it."""
    recipe = write_recipe(tmp_path, make_family_dir(tmp_path / "mpnet", "mpnet"), layers="none", epochs=1)
    ended = forked_ranks(2, recipe)
    assert [each.status for each in ended] == [0, 0], [each.err for each in ended]


def test_wrong_input_ends_all_ranks(recipe: Path) -> None:
    ended = forked_ranks(2, recipe, "--batch-size", "1", "--name", "refused")
    assert [each.status for each in ended] == [2, 2]
    assert "can't be split over 2 ranks" in ended[0].error


@pytest.mark.parametrize(
    ("flag", "line"),
    [("--learning-rate", "learning_rate: rank 1 has 0.5"), ("--seed", "seed: rank 1 has 5, rank 0 has")],
)
def test_ranks_with_different_settings_are_refused(recipe: Path, flag: str, line: str) -> None:
    """Before anything is computed: they would train together in silence."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    flags = ((), (flag, "0.5" if flag == "--learning-rate" else "5"))
    ranks = [
        Forked(recipe, "--name", "differ", *flags[rank], environment=shared | {"RANK": str(rank), "LOCAL_RANK": "0"})
        for rank in range(2)
    ]
    for ended in (rank.outcome() for rank in ranks):
        assert ended.status == 2 and ended.error.startswith(f"error: {line}"), ended.err
    assert not (recipe.parent / "runs" / "differ" / "log.jsonl").exists()


# -- torchrun --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(recipe: Path) -> RunDirectory:
    """torchrun on two ranks, left alone."""
    ended = outcome(torchrun(recipe, "--name", "undisturbed"))
    assert ended.status == 0, ended.err
    run = RunDirectory(recipe.parent / "runs" / "undisturbed")
    assert ended.out.count("STS set") == 1 and ended.out.rstrip().endswith(str(run.path / "model"))
    return run


def test_torchrun_takes_the_same_steps(undisturbed: RunDirectory, recipe: Path) -> None:
    assert train(recipe, "--name", "one").status == 0
    one = RunDirectory(recipe.parent / "runs" / "one")
    assert list(one.logged("loss")) == [10, 20, 30, 40, 50]
    assert undisturbed.logged("loss") == pytest.approx(one.logged("loss"), abs=1e-5, rel=1e-3)
    ours, theirs = (Embedder.load(run.path / "model", "cpu", "fp32").encode(TEST_TEXT) for run in (undisturbed, one))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@needs_proc
@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.long)])
def test_a_killed_rank_is_restarted_and_nothing_is_lost(recipe: Path, undisturbed: RunDirectory, rank: int) -> None:
    run = RunDirectory(recipe.parent / "runs" / f"killed-{rank}")
    options = ("--standalone", "--nproc-per-node", "2", "--max-restarts", "3")
    process = torchrun(recipe, "--name", run.path.name, "--save-every", "3", options=options)
    wait_until(lambda: steps_logged(run) >= 10)
    [found] = workers(process, rank)
    os.kill(found, signal.SIGKILL)
    ended = outcome(process)
    assert ended.status == 0, ended.err
    assert re.search(r"going on after step \d+ of 50", ended.out), ended.out
    assert_same_run(run, undisturbed)


def test_a_hung_rank_is_named(recipe: Path) -> None:
    before = functools.partial(hooks.hang_at_step, rank=1, step=7)
    ranks = start_ranks(3, recipe, "--name", "hangs", "--timeout", "8", before=before)
    ended = [rank.outcome() for rank in (ranks[0], ranks[2])]
    ranks[1].process.kill()
    for rank, each in zip((0, 2), ended, strict=True):
        assert each.status == 1
        assert each.error.startswith(f"error: rank {rank} waited too long for rank 1, which does not answer; --resume")


def test_a_hung_rank_0_is_named(recipe: Path) -> None:
    """It keeps the store, where no launcher does: a question to it is not answered either."""
    before = functools.partial(hooks.hang_at_step, rank=0, step=7)
    ranks = start_ranks(2, recipe, "--name", "hangs-0", "--timeout", "8", before=before)
    ended = ranks[1].outcome()
    ranks[0].process.kill()
    assert ended.status == 1
    assert ended.error.startswith("error: rank 1 waited too long for rank 0, which does not answer; --resume goes on")


def test_a_lost_rank_is_named(recipe: Path) -> None:
    """Without a launcher that would end the others at once."""
    ranks = start_ranks(2, recipe, "--name", "lost", before=functools.partial(hooks.die_at_step, rank=1, step=7))
    ended = [rank.outcome() for rank in ranks]
    assert ended[1].status == -signal.SIGKILL and ended[0].status == 1
    assert ended[0].error.startswith("error: rank 0 lost rank 1, which does not answer; --resume goes on from the last")


def test_ranks_that_do_not_come_are_told(recipe: Path) -> None:
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "RANK": "0"}
    ended = Forked(recipe, "--name", "alone", "--timeout", "1", environment=shared).outcome()
    assert ended.status == 1 and "error: the 2 ranks did not find each other at 127.0.0.1:" in ended.err


@pytest.mark.parametrize("name", ["00000.safetensors", "last.safetensors"])
def test_a_file_system_that_is_not_shared_is_told(recipe: Path, name: str) -> None:
    arguments = [recipe, "--name", f"unshared-{name}", "--epochs", "1"]
    if name.startswith("last"):
        assert train(*arguments).status == 0
        arguments.append("--resume")
    ended = forked_ranks(2, *arguments, before=functools.partial(hooks.blind_rank, rank=1, name=name))
    assert ended[1].status == 2
    assert f"{name}: " in ended[1].error and "rank 1 does not see it" in ended[1].error
    assert ended[0].status != 0


@needs_proc
@pytest.mark.long
def test_a_hung_rank_is_ended(recipe: Path) -> None:
    run = RunDirectory(recipe.parent / "runs" / "hung")
    process = torchrun(recipe, "--name", "hung", "--epochs", "100", "--timeout", "8")
    wait_until(lambda: steps_logged(run) >= 10)
    [hung] = workers(process, rank=1)
    os.kill(hung, signal.SIGSTOP)
    ended = outcome(process)
    assert ended.status == 1
    assert "error: rank 0 waited too long for rank 1, which does not answer; --resume goes on from the" in ended.err
    assert not Path(f"/proc/{hung}").exists()
    assert "Traceback" not in ended.err.split("error: rank 0")[0]


def test_sigterm_saves_and_one_process_goes_on(recipe: Path, undisturbed: RunDirectory) -> None:
    """Stopped on two ranks, gone on with on one: the same steps."""
    run = RunDirectory(recipe.parent / "runs" / "stopped")
    process = torchrun(recipe, "--name", "stopped", "--save-every", "1000")
    wait_until(lambda: steps_logged(run) >= 10)
    process.send_signal(signal.SIGTERM)
    ended = outcome(process)
    assert ended.status != 0
    command = f"torchrun (options as before) {TRAIN} {run.path}/recipe.toml --resume"
    [line] = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert re.fullmatch(rf"error: stopped after step \d+ of 50, which is saved; go on with: {re.escape(command)}", line)
    assert train(run.path / "recipe.toml", "--resume").status == 0
    assert run.logged("loss") == pytest.approx(undisturbed.logged("loss"), abs=1e-5)
    for name, tensor in undisturbed.weights.items():
        torch.testing.assert_close(run.weights[name], tensor, atol=1e-3, rtol=1e-3)


def two_hosts(recipe: Path, name: str, *options: str) -> list[subprocess.Popen[str]]:
    """Two launchers that meet over the loopback, as two hosts would over their network."""
    options = (*options, "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", name,
               "--rdzv-endpoint", f"localhost:{free_port()}")  # fmt: skip
    return [torchrun(recipe, "--name", name, "--save-every", "3", options=options) for _ in range(2)]


def test_two_hosts_give_the_same_result(recipe: Path, undisturbed: RunDirectory) -> None:
    ended = [outcome(host) for host in two_hosts(recipe, "two-hosts")]
    assert [each.status for each in ended] == [0, 0], [each.err for each in ended]
    run = RunDirectory(recipe.parent / "runs" / "two-hosts")
    assert_same_run(run, undisturbed)
    assert sum("STS set" in each.out for each in ended) == 1


@needs_proc
@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_killed_on_one_of_two_hosts(recipe: Path, undisturbed: RunDirectory, rank: int) -> None:
    """The other host's launcher does not count its restart; the run goes on nevertheless."""
    run = RunDirectory(recipe.parent / "runs" / f"hosts-{rank}")
    hosts = two_hosts(recipe, run.path.name, "--max-restarts", "3")
    wait_until(lambda: steps_logged(run) >= 10)
    [found] = [number for host in hosts for number in workers(host, rank)]
    os.kill(found, signal.SIGKILL)
    ended = [outcome(host) for host in hosts]
    assert [each.status for each in ended] == [0, 0], [each.err for each in ended]
    assert "going on after step" in ended[0].out + ended[1].out
    assert_same_run(run, undisturbed)
