"""One query at a time, as a search service gets them: how long a caller waits for an embedding, tokenising included."""

import time
from collections.abc import Sequence

import numpy as np

from shortstack.benchmark.timing import Encoder
from shortstack.model import Embedder
from shortstack.model.files import InputError

TOKENS = (8, 16, 64)  # of a query
WARM_UP = 20  # queries


def queries_of(embedder: Embedder, sentences: Sequence[str], tokens: int, count: int) -> list[str]:
    """Pieces of text, each of exactly this many tokens, [CLS] and [SEP] included.

    Args:
        embedder: tokenises.
        sentences: their words, one after the other, are cut into queries; again and again if they are few.
        tokens: of a query.
        count: how many.

    Raises:
        InputError: the text has none.
    """
    words = " ".join(sentences).split()
    queries: list[str] = []
    for start in range(len(words)):
        pieces = [" ".join(words[start : start + n]) for n in range(1, tokens - 1)]
        fitting = np.flatnonzero(embedder.tokenize(pieces).lengths == tokens)
        queries += [pieces[fitting[0]]] if len(fitting) else []
        if len(queries) == count:
            break
    if not queries:
        raise InputError(f"--latency: the text is too short for a query of {tokens} tokens; give more --sentences")
    return [queries[index % len(queries)] for index in range(count)]


def latencies(encoder: Encoder, queries: Sequence[str]) -> dict[str, float]:
    """Milliseconds of one query after the other: half of them take at most p50, 99 of 100 at most p99."""
    seconds = []
    for query in [*queries[:WARM_UP], *queries]:
        start = time.perf_counter()
        encoder.encode([query], prompt="", batch_size=1)
        seconds.append(time.perf_counter() - start)
    p50, p99 = np.percentile(seconds[WARM_UP:] or seconds, [50, 99]) * 1000
    return {"p50": float(p50), "p99": float(p99)}
