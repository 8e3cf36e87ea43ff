"""Which sentences each optimizer step sees, the same for every number of ranks.

The corpus is shuffled once, when it is built. An epoch then goes through it in windows of some shards, shuffles each
window, and cuts it into batches. Within a pool of `POOL` batches sentences are sorted by length before the cut, so that
a batch holds few distinct lengths and attention runs in few pieces; the batches are then shuffled again. What is left
of randomness: which sentences meet in a pool is random, and so is the order of the steps; a batch's own sentences are
neighbours in length within their pool.
"""

import numpy as np

POOL = 16  # batches sorted together; 1 would make batches fully random, at the price of more, smaller attention calls


def window_batches(lengths: np.ndarray, batch_size: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Cut a window of sentences into batches.

    Args:
        lengths: tokens of each sentence of the window, (n,).
        batch_size: sentences of a batch; where it does not divide n, some batches hold fewer.
        generator: the source of randomness.

    Returns:
        ceil(n / batch_size) arrays of indices in the window, each in ascending order of length.
    """
    order = generator.permutation(len(lengths))
    batches: list[np.ndarray] = []
    start = 0
    for size in pool_sizes(len(order), batch_size):
        pool = order[start : start + size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += np.array_split(pool, -(-size // batch_size))
        start += size
    return [batches[index] for index in generator.permutation(len(batches))]


def pool_sizes(sentences: int, batch_size: int) -> list[int]:
    """How many sentences each pool of a window holds; less than a batch at the end joins the pool before it."""
    full, rest = divmod(sentences, POOL * batch_size)
    sizes = [POOL * batch_size] * full
    if full and rest < batch_size:
        sizes[-1] += rest
    elif rest:
        sizes.append(rest)
    return sizes


def smallest_batch(sentences: int, batch_size: int) -> int:
    """Sentences of the smallest batch of a window."""
    return min(size // -(-size // batch_size) for size in pool_sizes(sentences, batch_size))


def rank_share(batch: np.ndarray, rank: int, world: int) -> np.ndarray:
    """A rank's part of a batch that ascends in length: dealt out back and forth, so that all get equal work.

    Example, 8 sentences on 2 ranks: rank 0 takes 0 3 4 7, rank 1 takes 1 2 5 6.
    """
    indices = np.arange(len(batch))
    turn, seat = indices // world, indices % world
    return batch[np.where(turn % 2 == 0, seat, world - 1 - seat) == rank]
