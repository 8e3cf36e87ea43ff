"""What tests do inside a run of train.py: small changes to it before it starts, each to bring about one event."""

import itertools
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import train
from distillation import labels
from model import files


def small_shards(sentences: int, window: int = 4) -> None:
    """Let a shard hold this many sentences, and a window this many shards."""
    labels.SHARD, labels.WINDOW = sentences, window


def log_every_step(shards_written: Path) -> None:
    """Log every step's loss; use small shards, and note in a file which rank writes which."""
    small_shards(64)
    train.LOG_EVERY = 1
    real = labels.write_shard

    def noting(path: Path, *arguments: Any) -> None:
        real(path, *arguments)
        with shards_written.open("a") as file:
            file.write(f"{os.environ.get('RANK', 0)}:{path.stem}\n")

    labels.write_shard = noting


def measure_memory(path: Path, shard: int, window: int) -> None:
    """Use small shards, and write the process's peak memory in bytes to a file at its end."""
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ[cache] = "1"  # torch's caches of CPU kernels, which grow by each new shape, up to 1024 of them
    small_shards(shard, window)
    main = train.main

    def measured() -> None:
        main()
        path.write_text(str(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))

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
    real, count = files.save_file, itertools.count()

    def dying(tensors: Any, path: Path, metadata: Any) -> None:
        real(tensors, path, metadata=metadata)
        if name in path.name and next(count) == earlier:
            os.truncate(path, int(share * path.stat().st_size))
            die()

    files.save_file = dying


def signal_at_step(number: int, step: int, times: int = 1) -> None:
    """Send a signal to ourselves in a step, counted from 1."""
    real, count = train.train_step, itertools.count(1)

    def signalling(*arguments: Any) -> Any:
        if next(count) == step:
            for _ in range(times):
                os.kill(os.getpid(), number)
        return real(*arguments)

    train.train_step = signalling


def hang_at_step(rank: int, step: int) -> None:
    """Let one rank hang in a step."""
    if os.environ["RANK"] == str(rank):
        signal_at_step(signal.SIGSTOP, step)


def signal_while_labelling(number: int) -> None:
    """Send a signal to ourselves after the first shard was written."""
    real = labels.write_shard

    def signalling(*arguments: Any) -> None:
        real(*arguments)
        os.kill(os.getpid(), number)

    labels.write_shard = signalling
