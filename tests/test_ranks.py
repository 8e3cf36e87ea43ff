"""Which device a process computes on, and what it says of NCCL's errors, with GPUs made to look present."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.cuda._utils import _get_device_index

from shortstack.distillation import RunError
from shortstack.distillation import ranks as module
from shortstack.distillation.ranks import Ranks, refuse_shared_gpus
from shortstack.model.files import InputError


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Two GPUs that look present; the list receives the index of each that was made the current one."""
    current: list[int] = []
    real_empty = torch.empty

    def empty(*size: Any, device: torch.device | str = "cpu", **options: Any) -> torch.Tensor:
        if (torch.device(device).index or 0) > 1:
            raise RuntimeError("CUDA error: invalid device ordinal\nmore lines")
        return real_empty(*size, **options)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: current.append(_get_device_index(device)))
    monkeypatch.setattr(torch, "empty", empty)
    return current


@pytest.mark.parametrize(
    ("asked", "index"), [("auto", 0), ("cuda", 0), ("cuda:0", 0), ("cuda:1", 1)], ids=lambda value: str(value)
)
def test_one_process_takes_the_gpu_it_is_told(gpus: list[int], asked: str, index: int) -> None:
    ranks = Ranks.start(asked, 10.0)
    assert ranks.device == torch.device("cuda", index)
    assert gpus == [index]


def test_one_rank_that_torchrun_started_again_knows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It then resumes its run: torchrun --nproc-per-node 1 --max-restarts 3."""
    monkeypatch.setenv("WORLD_SIZE", "1")
    for count in ("0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
        assert Ranks.start("cpu", 10.0).restarted == (count == "1")


def test_half_of_torchruns_variables_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RunError, match="2 ranks did not find each other .*RANK expected"):
        Ranks.start("cpu", 10.0)


def test_the_cpu_stays_to_be_had_beside_a_gpu(gpus: list[int]) -> None:
    assert Ranks.start("cpu", 10.0).device == torch.device("cpu")
    assert gpus == []


def test_a_gpu_that_is_not_there_is_one_line(gpus: list[int]) -> None:
    with pytest.raises(InputError, match="^device: 'cuda:7' can't be used .CUDA error: invalid device ordinal.$"):
        Ranks.start("cuda:7", 10.0)


@pytest.mark.parametrize(("asked", "index"), [("auto", 1), ("cuda", 1), ("cuda:0", 0)])
def test_under_torchrun_a_rank_takes_the_gpu_of_its_local_number(
    gpus: list[int], monkeypatch: pytest.MonkeyPatch, asked: str, index: int
) -> None:
    """Two ranks; the other one's half of the conversation is not played, only noted that NCCL is asked for."""
    joined: dict[str, Any] = {}
    for key, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(dist, "rendezvous", lambda *_, **__: iter([(dist.HashStore(), 1, 2)]))
    monkeypatch.setattr(module, "meet", lambda *_: ("name", False))
    monkeypatch.setattr(module, "refuse_shared_gpus", lambda store, rank, world, device: None)
    monkeypatch.setattr(
        dist, "init_process_group", lambda backend, **options: joined.update(backend=backend, **options)
    )
    ranks = Ranks.start(asked, 10.0)
    assert (ranks.rank, ranks.world, ranks.device, gpus) == (1, 2, torch.device("cuda", index), [index])
    assert joined["backend"] == "nccl" and joined["device_id"] == torch.device("cuda", index)


@pytest.mark.parametrize(
    ("uuids", "hosts", "shared"),
    [("ab", "xx", False), ("aa", "xy", False), ("aa", "xx", True)],
    ids=["two GPUs", "two hosts", "one GPU"],
)
def test_two_ranks_on_one_gpu_are_refused_by_both(
    monkeypatch: pytest.MonkeyPatch, uuids: str, hosts: str, shared: bool
) -> None:
    """`torchrun ... --device cuda:0`, where NCCL would fail with a message that names no cause."""
    store, said = dist.HashStore(), {}
    of_thread = threading.local()
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=uuids[of_thread.rank]))
    monkeypatch.setattr(module.socket, "gethostname", lambda: hosts[of_thread.rank])

    def ask(rank: int) -> None:
        of_thread.rank = rank
        try:
            refuse_shared_gpus(store, rank, 2, torch.device("cuda", 0))
        except InputError as error:
            said[rank] = str(error)

    threads = [threading.Thread(target=ask, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    line = "device: ranks 0 and 1 would share one GPU; give --device cuda, and no more ranks a host than it has GPUs"
    assert said == ({0: line, 1: line} if shared else {})


NCCL = "NCCL error in: ProcessGroupNCCL.cpp:3690, {what}, NCCL version 2.28.9\n{kind}: {gloss}\nLast error:\n{last}"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            NCCL.format(
                what="remote process exited or there was a network error",
                kind="ncclRemoteError",
                gloss="A call failed possibly due to a network error or a remote process exiting prematurely.",
                last="socketProgress: Connection closed by remote peer host0<49152>",
            ),
            "rank 0 lost rank 1, which does not answer; --resume goes on from the last checkpoint "
            "(socketProgress: Connection closed by remote peer host0<49152>)",
        ),
        (
            NCCL.format(
                what="unhandled cuda error (run with NCCL_DEBUG=INFO for details)",
                kind="ncclUnhandledCudaError",
                gloss="Call to CUDA function failed.",
                last="Cuda failure 2 'out of memory'",
            ),
            "rank 0: Cuda failure 2 'out of memory'",
        ),
        (
            NCCL.format(
                what="invalid usage (run with NCCL_DEBUG=WARN for details)",
                kind="ncclInvalidUsage",
                gloss="This usually reflects invalid usage of NCCL library.",
                last="Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 1000",
            ),
            "rank 0: Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 1000",
        ),
        (
            "Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7) ran for 1800000 ms before timing out.",
            "rank 0 waited too long for rank 1, which does not answer; --resume goes on from the last checkpoint "
            "(Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7) ran for 1800000 ms before timing out.)",
        ),
    ],
    ids=["lost", "memory", "usage", "hung"],
)
def test_what_nccl_says_is_kept_and_only_a_lost_rank_is_called_lost(
    monkeypatch: pytest.MonkeyPatch, error: str, line: str
) -> None:
    monkeypatch.setattr(module, "ROLL_CALL", 0.2)
    ended: list[BaseException] = []

    def end(error: BaseException) -> Any:
        ended.append(error)

    with Ranks(0, 2, torch.device("cpu"), dist.HashStore()).failing_together(end):
        raise dist.DistBackendError(error)
    assert isinstance(ended[0], RunError) and str(ended[0]) == line
