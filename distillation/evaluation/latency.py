"""How long a caller waits for the embedding of one query."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

WARM_UP = 20  # queries


def latencies(encode: Callable[[str], Any], queries: Sequence[str]) -> dict[str, float]:
    """Milliseconds of one query after the other: half of them take at most p50, 99 of 100 at most p99."""
    seconds = []
    for query in [*queries[:WARM_UP], *queries]:
        start = time.perf_counter()
        encode(query)
        seconds.append(time.perf_counter() - start)
    p50, p99 = np.percentile(seconds[len(queries[:WARM_UP]) :], [50, 99]) * 1000
    return {"p50": float(p50), "p99": float(p99)}
