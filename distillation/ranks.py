"""One process or many: what torchrun's environment says, and the few exchanges between ranks that a run needs."""

import contextlib
import json
import os
import re
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import nn

from shortstack.distillation import RunError
from shortstack.model.directory import usable_device
from shortstack.model.files import InputError, first_line

ROLL_CALL = 5.0  # seconds that a rank which lost the others listens for who is still there
POLL = 0.1  # seconds between looks into the store
# NCCL's or torch's messages when the other end of an exchange is gone or silent; any other error is this rank's own.
LOST_A_RANK = re.compile(
    r"remote process exited|ncclRemoteError|ncclSystemError|connection (closed|reset|refused)|timed out|timeout|"
    r"broken pipe|gloo",
    re.IGNORECASE,
)
WAITED_TOO_LONG = re.compile(r"timed out|timing out|timeout", re.IGNORECASE)


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run; without torchrun, rank 0 of 1.

    Attributes:
        rank: number of this process, from 0; rank 0 prints, logs and saves.
        world: number of processes.
        device: what this process computes on.
        store: small values that all ranks can read, kept by torchrun; None for a single process.
        restarted: whether torchrun started the ranks before, and they ended; not every rank may know.
    """

    rank: int
    world: int
    device: torch.device
    store: dist.Store | None = None
    restarted: bool = False

    @classmethod
    def start(cls, device: str, timeout_seconds: float) -> "Ranks":
        """Join the process group that torchrun's environment names, if it names one.

        Args:
            device: "auto", "cpu", "cuda" or "cuda:N"; under torchrun each rank takes the GPU of its local number.
            timeout_seconds: how long an exchange waits for the others before the run is given up.

        Raises:
            InputError: a device that is not there, or one that two ranks would share.
            RunError: the other ranks can't be reached.
        """
        world, local_rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cuda":
            device = f"cuda:{local_rank}"  # torch.cuda.set_device takes no device without an index
        chosen = usable_device(device)
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
        if world == 1:
            return cls(0, 1, chosen, restarted=restarted)
        backend, timeout = "nccl" if chosen.type == "cuda" else "gloo", timedelta(seconds=timeout_seconds)
        try:
            store, rank, world = next(dist.rendezvous("env://", timeout=timeout))
            name, met_before = meet(store, rank, world, timeout_seconds)
            store = dist.PrefixStore(name, store)
            if chosen.type == "cuda":
                refuse_shared_gpus(dist.PrefixStore("gpus", store), rank, world, chosen)
            own = chosen if chosen.type == "cuda" else None  # NCCL then connects now, and on this GPU only
            dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout, device_id=own)
        except InputError:
            raise
        except (RuntimeError, ValueError) as error:  # ValueError: an environment variable of torchrun's is missing
            where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise RunError(f"the {world} ranks did not find each other at {where} ({said_last(error)})") from None
        return cls(rank, world, chosen, dist.PrefixStore("shortstack", store), restarted or met_before)

    @property
    def is_main(self) -> bool:
        """Whether this process prints, logs and saves."""
        return self.rank == 0

    def wait_for_all(self) -> None:
        """Return when every rank has come here; none may be later than the timeout."""
        if self.world > 1:
            dist.barrier()

    def wait_for_main(self, done: str) -> None:
        """Return when rank 0 has come here, however long it takes; `done` names its work before."""
        if self.store is None:
            return
        if self.is_main:
            self.store.set(done, "yes")
        while not self.store.check([done]):
            time.sleep(POLL)

    def from_main(self, name: str, compute: Callable[[], Any]) -> Any:
        """The JSON value that rank 0 computes, on every rank, however long it takes; `name` must be new in the run."""
        if self.store is None:
            return compute()
        if self.is_main:
            self.store.set(f"{name} value", json.dumps(compute()))
        self.wait_for_main(name)
        return json.loads(self.store.get(f"{name} value"))

    def agree(self, about: str, values: dict[str, Any]) -> None:
        """Make sure that all ranks have the same JSON values; all must come here together, once for each `about`.

        Raises:
            InputError: on every rank; names the first value that differs, and who has it.
        """
        if self.store is None:
            return
        self.store.set(f"{about} {self.rank}", json.dumps(values))
        every = [json.loads(self.store.get(f"{about} {rank}")) for rank in range(self.world)]
        self.wait_for_all()  # rank 0 keeps the store: it must not end while another still reads there
        for rank, theirs in enumerate(every):
            for key, value in theirs.items():
                if value != every[0].get(key):
                    raise InputError(
                        f"{key}: rank {rank} has {value!r:.80}, rank 0 has {every[0].get(key)!r:.80}; start all ranks "
                        "with the same command, code and packages"
                    )

    def copy_from_main(self, module: nn.Module) -> None:
        """Give a module rank 0's weights on every rank: computed elsewhere, the last bit may differ."""
        if self.world > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, 0)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Add up a tensor over all ranks, in place; every rank gets the sum."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on some rank."""
        return bool(self.sum(torch.tensor(float(flag), device=self.device)) > 0)

    def all(self, flag: bool) -> bool:
        """Whether the flag is set on every rank."""
        return not self.any(not flag)

    @contextlib.contextmanager
    def failing_together(self, end: Callable[[BaseException], NoReturn]) -> Iterator[None]:
        """Let no rank wait for a failed one: an error in the block goes to `end`, which ends the process at once.

        An orderly exit would first wait for exchanges that have begun and can no longer end.
        """
        try:
            yield
        except BaseException as error:
            if self.world == 1:
                raise
            end(self._explained(error))

    def _explained(self, error: BaseException) -> BaseException:
        """The error itself; for a failed exchange, one that names the ranks that are gone or hang."""
        of_exchange = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
        if not of_exchange:
            return error
        if not LOST_A_RANK.search(str(error)):
            return RunError(f"rank {self.rank}: {said_last(error)}")
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # nothing is left to save: torchrun may end us at once
        silent = self._roll_call()
        who = f"rank {' and rank '.join(map(str, silent))}" if silent else "another rank"
        what = "waited too long for" if WAITED_TOO_LONG.search(str(error)) else "lost"
        why = "which does not answer" if silent else "which failed first"
        return RunError(
            f"rank {self.rank} {what} {who}, {why}; --resume goes on from the last checkpoint ({said_last(error)})"
        )

    def _roll_call(self) -> list[int]:
        """The ranks that don't come here within a few seconds; empty if the store is lost and can't be asked."""
        found: list[list[int]] = []

        def ask() -> None:
            silent = list(range(self.world))
            end = time.monotonic() + ROLL_CALL
            with contextlib.suppress(RuntimeError):  # the store may be what was lost
                assert self.store is not None
                self.store.set(f"here {self.rank}", "yes")
                while silent and time.monotonic() < end:
                    silent = [rank for rank in silent if not self.store.check([f"here {rank}"])]
                    time.sleep(POLL)
                found.append(silent)

        # In a thread: without a launcher rank 0 keeps the store, and where that one hangs, so does a question.
        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(2 * ROLL_CALL)
        return [0] if asking.is_alive() else (found or [[]])[0]

    def stop(self) -> None:
        """Leave the process group, all ranks at the same time: one that left early would wait for rank 0 in NCCL."""
        if self.world > 1:
            self.wait_for_main("finished")  # it evaluates for longer than an exchange may take
            self.wait_for_all()
            dist.destroy_process_group()


ALONE = Ranks(0, 1, torch.device("cpu"))


def refuse_shared_gpus(store: dist.Store, rank: int, world: int, device: torch.device) -> None:
    """Raise InputError unless each rank has a GPU of its own, which NCCL requires."""
    store.set(str(rank), f"{socket.gethostname()} {torch.cuda.get_device_properties(device).uuid}")
    first_with: dict[bytes, int] = {}
    for other in range(world):
        first = first_with.setdefault(store.get(str(other)), other)
        if first != other:
            raise InputError(
                f"device: ranks {first} and {other} would share one GPU; give --device cuda, and no more ranks a host "
                "than it has GPUs"
            )


def said_last(error: BaseException) -> str:
    """The most telling line of an error: for NCCL the last one after "Last error:", else the first."""
    _, found, rest = str(error).partition("Last error:")
    return rest.strip().splitlines()[-1].strip() if found and rest.strip() else first_line(error)


def meet(store: dist.Store, rank: int, world: int, timeout_seconds: float) -> tuple[str, bool]:
    """Agree with the other ranks on a name that no earlier start of the run used.

    After a restart torchrun's store still holds what the ranks wrote before it, such as addresses of processes that
    are gone, and a rank that read those would wait for them. Under a new name there is nothing old.

    Returns:
        The name; and on rank 0 whether there was an earlier start.

    Raises:
        RuntimeError: some rank did not come in time.
    """
    mine = secrets.token_hex(8)
    end = time.monotonic() + timeout_seconds
    restarted = rank == 0 and store.check(["leader"])
    if rank == 0:
        store.set("leader", mine)
    while time.monotonic() < end:
        leader = mine if rank == 0 else store.get("leader").decode()  # perhaps one of before the restart
        store.set(f"{leader} {rank}", mine)
        if rank == 0 and store.check([f"{leader} {other}" for other in range(world)]):
            came = [store.get(f"{leader} {other}").decode() for other in range(world)]
            store.set(f"{leader} came", " ".join(came))
        if store.check([f"{leader} came"]) and mine in store.get(f"{leader} came").decode().split():
            return leader, restarted
        time.sleep(POLL)
    raise RuntimeError(f"rank {rank} waited {timeout_seconds:g} seconds for the others")
