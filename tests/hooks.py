"""What tests do inside a run of train.py: small changes to it before it starts, each to bring about one event."""

import resource
from pathlib import Path

import train
from distillation import labels


def small_shards(sentences: int, window: int = 4) -> None:
    """Let a shard hold this many sentences, and a window this many shards."""
    labels.SHARD, labels.WINDOW = sentences, window


def measure_memory(path: Path, shard: int, window: int) -> None:
    """Use small shards, and write the process's peak memory in bytes to a file at its end."""
    small_shards(shard, window)
    main = train.main

    def measured() -> None:
        main()
        path.write_text(str(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))

    train.main = measured
