"""One process or many: what torchrun's environment says, and the few exchanges between ranks that a run needs."""

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from model.files import InputError


@dataclass(frozen=True)
class Ranks:
    """Who we are among the processes of this run; alone, rank 0 of 1.

    Attributes:
        rank: number of this process, from 0; rank 0 prints, logs and saves.
        world: number of processes.
        device: what this process computes on.
    """

    rank: int
    world: int
    device: torch.device

    @classmethod
    def start(cls, device: str, timeout_seconds: float) -> "Ranks":
        """Join the process group that torchrun's environment names, if it names one.

        Args:
            device: "auto", "cpu", "cuda" or "cuda:N"; under torchrun each rank takes the GPU of its local number.
            timeout_seconds: how long an exchange waits for the others before the run is given up.

        Raises:
            InputError: a device that is not there.
        """
        world, local_rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cuda" and world > 1:
            device = f"cuda:{local_rank}"
        try:
            chosen = torch.device(device)
            torch.empty(0, device=chosen)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"device: {device} can't be used ({str(error).splitlines()[0]})") from None
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        if world > 1:
            backend = "nccl" if chosen.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=timedelta(seconds=timeout_seconds))
        return cls(int(os.environ.get("RANK", 0)), world, chosen)

    @property
    def is_main(self) -> bool:
        """Whether this process prints, logs and saves."""
        return self.rank == 0

    def wait_for_all(self) -> None:
        """Return when every rank has come here."""
        if self.world > 1:
            dist.barrier()

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Add up a tensor over all ranks, in place; every rank gets the sum."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on some rank."""
        return bool(self.sum(torch.tensor(float(flag), device=self.device)) > 0)

    def stop(self) -> None:
        """Leave the process group."""
        if self.world > 1:
            dist.destroy_process_group()
