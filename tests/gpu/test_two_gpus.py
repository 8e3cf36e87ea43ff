"""Two GPUs give one GPU's run; a rank that is lost or hangs is named; nobody hangs at the end."""

import functools
import signal
from pathlib import Path

import hooks
import pytest
import torch
from processes import RunDirectory, train, write_recipe
from test_distributed import outcome, start_ranks, torchrun

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs"),
]


@pytest.fixture
def recipe(tmp_path: Path, tiny_model_dir: Path) -> Path:
    return write_recipe(tmp_path, tiny_model_dir, epochs=4, batch_size=40, device="cuda", log_every=1, timeout=60)


def test_torchrun_on_two_gpus_takes_the_steps_of_one(recipe: Path, tmp_path: Path) -> None:
    """In fp32, and both processes end by themselves."""
    assert train(recipe, "--output", tmp_path / "one").status == 0
    ended = outcome(torchrun(recipe, "--output", tmp_path / "two"))
    assert ended.status == 0, ended.err
    one, two = (RunDirectory(tmp_path / name / "tiny").logged("loss") for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-3)


@pytest.mark.parametrize("fault", [hooks.die_at_step, hooks.hang_at_step])
def test_a_rank_that_is_lost_or_hangs_is_named(recipe: Path, fault: functools.partial[None]) -> None:
    ranks = start_ranks(2, recipe, "--timeout", "20", before=functools.partial(fault, 1, 5))
    first = ranks[0].outcome()
    ranks[1].process.kill()
    assert first.status in (1, -signal.SIGABRT)  # NCCL's watchdog may end the process first
    assert "rank 1" in first.err or "timeout" in first.err.lower(), first.err


def test_two_ranks_on_one_gpu_are_refused(recipe: Path) -> None:
    for ended in [rank.outcome() for rank in start_ranks(2, recipe, "--device", "cuda:0")]:
        assert ended.status == 2 and "would share one GPU" in ended.error
