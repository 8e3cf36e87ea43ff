"""Which device a process computes on, with a GPU made to look present: no test here needs one."""

from typing import Any

import pytest
import torch
from torch.cuda._utils import _get_device_index

from distillation.ranks import Ranks
from model.files import InputError


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


def test_the_cpu_stays_to_be_had_beside_a_gpu(gpus: list[int]) -> None:
    assert Ranks.start("cpu", 10.0).device == torch.device("cpu")
    assert gpus == []


def test_a_gpu_that_is_not_there_is_one_line(gpus: list[int]) -> None:
    with pytest.raises(InputError, match="^device: cuda:7 can't be used .CUDA error: invalid device ordinal.$"):
        Ranks.start("cuda:7", 10.0)
