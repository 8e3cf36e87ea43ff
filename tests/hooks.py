"""What tests do inside a run of train.py: small changes to it before it starts, each to bring about one event."""

import itertools
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from shortstack import train
from shortstack.distillation import losses
from shortstack.distillation.data import labels
from shortstack.distillation.run import Run
from shortstack.distillation.training import checkpoint, meter
from shortstack.model import Embedder, tensors


def at_call(owner: Any, name: str, number: int, action: Callable[[], object]) -> None:
    """Do something before the n-th call of a function, counted from 1."""
    real, count = getattr(owner, name), itertools.count(1)

    def counted(*arguments: Any, **keywords: Any) -> Any:
        if next(count) == number:
            action()
        return real(*arguments, **keywords)

    setattr(owner, name, counted)


def note_shards(shards_written: Path) -> None:
    """Note in a file which rank writes which shard."""
    real = labels.write_shard

    def noting(store: labels.Store, name: int | str, *arguments: Any) -> None:
        real(store, name, *arguments)
        with shards_written.open("a") as file:
            file.write(f"{os.environ.get('RANK', 0)}:{Path(labels.shard_name(name)).stem}\n")

    labels.write_shard = noting


def overlapping(then: Callable[[], None]) -> None:
    """Let threads work ahead as beside a GPU, and do something else, too, before the run starts."""
    train.overlaps = labels.overlaps = lambda device: True
    then()


def note_batches(path: Path) -> None:
    """Note in a file how many tokens each batch has that is embedded out of training."""
    real = Embedder.forward

    def noting(embedder: Embedder, tokens: Any) -> Any:
        if not embedder.training:
            with path.open("a") as file:
                file.write(f"{len(tokens.input_ids)}\n")
        return real(embedder, tokens)

    Embedder.forward = noting


def measure_memory(path: Path) -> None:
    """Write the process's peak memory in bytes to a file at its end."""
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ[cache] = "1"  # torch's caches of CPU kernels, which grow by each new shape, up to 1024 of them
    main = train.main

    def measured() -> None:
        main()
        unit = 1 if sys.platform == "darwin" else 1024
        path.write_text(str(unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))

    train.main = measured


# -- ends and damage -------------------------------------------------------------------------------------------------


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_after_calls(name: str, calls: int) -> None:
    """SIGKILL at any moment: before a call of some function, Python's or C's, counted from the first train.`name`."""
    real = getattr(train, name)

    def armed(*arguments: Any) -> Any:
        count = itertools.count(1)

        def watch(frame: Any, event: str, argument: Any) -> None:
            if event in ("call", "c_call") and next(count) == calls:
                die()

        setattr(train, name, real)
        sys.setprofile(watch)
        return real(*arguments)

    setattr(train, name, armed)


def kill_while_writing(name: str, share: float, earlier: int = 0) -> None:
    """SIGKILL when this share of a tensor file is written: the next whose name holds `name` after some `earlier`."""
    real, count = tensors.write_safetensors, itertools.count()

    def dying(tensors: Any, path: Path, metadata: Any) -> None:
        real(tensors, path, metadata)
        if name in path.name and next(count) == earlier:
            os.truncate(path, int(share * path.stat().st_size))
            die()

    tensors.write_safetensors = dying


def signal_at_step(number: int, step: int, times: int = 1) -> None:
    """Send a signal to ourselves before a step."""
    at_call(train, "train_step", step, lambda: [os.kill(os.getpid(), number) for _ in range(times)])


def hang_at_step(rank: int, step: int) -> None:
    """Let one rank hang in a step."""
    if os.environ["RANK"] == str(rank):
        signal_at_step(signal.SIGSTOP, step)


def die_at_step(rank: int, step: int) -> None:
    """Let one rank be killed in a step."""
    if os.environ["RANK"] == str(rank):
        signal_at_step(signal.SIGKILL, step)


def blind_rank(rank: int, name: str) -> None:
    """Let files of this name not be there for one rank, as on a host with a file system of its own."""
    real = Path.exists

    def exists(path: Path) -> bool:
        return path.name != name and real(path)

    if os.environ["RANK"] == str(rank):
        Path.exists = exists


def signal_while_labelling(number: int) -> None:
    """Send a signal to ourselves when the second shard is about to be embedded."""
    at_call(Embedder, "embed", 2, lambda: os.kill(os.getpid(), number))


# -- faults ----------------------------------------------------------------------------------------------------------


def limit_file_size(size: int) -> None:
    """From now on no file of this process can grow beyond so many bytes, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def full_disk_while_saving(call: int, size: int) -> None:
    """Let the disk be full from the n-th checkpoint on."""
    at_call(checkpoint, "save_checkpoint", call, lambda: limit_file_size(size))


def full_disk_while_logging(call: int) -> None:
    """Let the log's n-th line meet a full disk; what is printed meanwhile is shorter than the log is made here."""
    real, count = Run.log, itertools.count(1)

    def limited(run: Run, line: dict[str, Any]) -> None:
        if next(count) == call:
            path = run.directory / "log.jsonl"
            with path.open("a") as file:
                file.write(" " * 50_000 + "\n")
            limit_file_size(path.stat().st_size + 10)
        real(run, line)

    Run.log = limited


def damage_after_labelling(name: str) -> None:
    """Flip a bit of a shard between labelling and training."""
    real = train.label_corpus

    def damaged(*arguments: Any) -> labels.Labels:
        found = real(*arguments)
        flip_bit(found.directory / name)
        return found

    train.label_corpus = damaged


def flip_bit(path: Path) -> None:
    """Flip one bit of a file's last quarter, where the tensors are."""
    content = bytearray(path.read_bytes())
    content[-len(content) // 8] ^= 1
    path.write_bytes(content)


def nan_losses(first: int, last: int) -> None:
    """Let the loss of some steps, counted from 1, be NaN."""
    real, count = losses.LOSSES["mse"], itertools.count(1)

    def mse(*arguments: torch.Tensor) -> torch.Tensor:
        return real(*arguments) * (math.nan if first <= next(count) <= last else 1.0)

    losses.LOSSES["mse"] = mse


def raise_at_step(error: Exception, step: int) -> None:
    """Raise an error in a step."""

    def fail() -> None:
        raise error

    at_call(train, "train_step", step, fail)


def become_nobody() -> None:
    """Give up root's right to write everywhere."""
    if os.geteuid() == 0:
        os.seteuid(65534)


def count_seconds() -> None:
    """Let the log's clock go on by a second in each step, and by a thousand in each evaluation and each checkpoint."""
    clock = SimpleNamespace(now=0, perf_counter=lambda: clock.now)
    meter.time = clock

    def taking(seconds: int, real: Callable) -> Callable:
        def timed(*arguments: Any) -> Any:
            clock.now += seconds
            return real(*arguments)

        return timed

    train.train_step = taking(1, train.train_step)
    train.Judge.quickly = taking(1000, train.Judge.quickly)
    checkpoint.save_checkpoint = taking(1000, checkpoint.save_checkpoint)


def slow_steps(seconds: float) -> None:
    """Sleep before each step."""
    real = train.train_step

    def slow(*arguments: Any) -> Any:
        time.sleep(seconds)
        return real(*arguments)

    train.train_step = slow


def report_instead(run: Path, then: Callable[[], None]) -> None:
    """Report a finished run instead of training one."""
    from shortstack.distillation.report.__main__ import write_report

    train.main = lambda: write_report(run)
    then()


def export_instead(model: Path, then: Callable[[], None]) -> None:
    """Export a student instead of training one."""
    from shortstack.distillation import export

    def main() -> None:
        sys.argv = ["export", str(model)]
        export.main()

    train.main = main
    then()
