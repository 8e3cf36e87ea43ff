"""Epochs of batches: which sentences each optimizer step sees, whatever the number of ranks, and each rank's share.

The corpus is shuffled once, when it is built. An epoch then goes through it in windows of a few shards, shuffles each
window, and cuts it into batches. Within a pool of `POOL` batches sentences are sorted by length before the cut, so that
a batch holds few distinct lengths and attention runs in few pieces; the batches are then shuffled again. So it is
random which sentences share a pool, and in which order the steps come; but the sentences of a batch have similar
lengths.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from shortstack.distillation.data.labels import LabelledSentences, Labels
from shortstack.distillation.ranks import Ranks
from shortstack.distillation.recipe import Recipe
from shortstack.model.files import InputError

POOL = 16  # batches sorted together; 1 would make batches fully random, but need more and smaller attention calls


# -- epochs ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Epochs:
    """All batches of a run. An epoch has every sentence once.

    Attributes:
        labels: the sentences with their labels, of which one window is in memory at a time.
        batch_size: sentences of a batch over all ranks.
        seed: decides the order.
        count: epochs of the run.
    """

    labels: Labels
    batch_size: int
    seed: int
    count: int

    @classmethod
    def of(cls, labels: Labels, recipe: Recipe) -> "Epochs":
        """The epochs that a recipe asks for."""
        return cls(labels, recipe.batch_size, recipe.seed, recipe.epochs)

    @property
    def steps_per_epoch(self) -> int:
        """Batches of each epoch."""
        return sum(math.ceil(size / self.batch_size) for size in self._windows())

    @property
    def steps(self) -> int:
        """Batches of the run."""
        return self.steps_per_epoch * self.count

    @property
    def steps_per_shard(self) -> int:
        """How many batches hold about as many sentences as a shard of labels."""
        return max(1, self.labels.shard_size // self.batch_size)

    def batches(self, step: int = 0) -> Iterator[LabelledSentences]:
        """The batches of the run after its first `step`, each in ascending order of length."""
        first, skip = divmod(step, self.steps_per_epoch)
        for number in range(first, self.count):
            yield from self.epoch(number, skip if number == first else 0)

    def epoch(self, number: int, skip: int = 0) -> Iterator[LabelledSentences]:
        """The batches of one epoch after its first `skip`, each in ascending order of length."""
        labels = self.labels
        order = self._shards(number)
        for window, size in enumerate(self._windows()):
            start, steps = window * labels.window_shards, math.ceil(size / self.batch_size)
            if skip >= steps:
                skip -= steps
                continue
            sentences = labels.read(order[start : start + labels.window_shards].tolist())
            shuffle = np.random.default_rng([self.seed, number, start])
            for indices in window_batches(sentences.lengths, self.batch_size, shuffle)[skip:]:
                yield sentences.take(indices)
            del sentences  # before the next window is read
            skip = 0

    def _windows(self) -> list[int]:
        """Sentences of each window."""
        return window_sizes(self.labels.rows, self.labels.shard_size * self.labels.window_shards)

    def _shards(self, epoch: int) -> np.ndarray:
        """The shards' numbers in the order of an epoch."""
        shards = self.labels.shards
        generator = np.random.default_rng([self.seed, epoch])
        if self.labels.rows % self.labels.shard_size == 0:
            return generator.permutation(shards)
        # The shorter last shard stays last, so that every epoch has the same number of steps.
        return np.append(generator.permutation(shards - 1), shards - 1)


# -- windows and batches ---------------------------------------------------------------------------------------------


def window_sizes(sentences: int, window: int) -> list[int]:
    """Sentences of each window of an epoch: `window` of them, fewer in the last one."""
    return [min(window, sentences - start) for start in range(0, sentences, window)]


def window_batches(lengths: np.ndarray, batch_size: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Cut a window of sentences into batches.

    Args:
        lengths: tokens of each sentence of the window, (n,).
        batch_size: sentences of a batch; if it does not divide n, some batches hold fewer.
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


# -- the ranks' shares -----------------------------------------------------------------------------------------------


def check_batches(recipe: Recipe, sentences: int, ranks: Ranks) -> None:
    """Make sure that every rank has a sentence in every micro-batch of a run over so many sentences.

    Raises:
        InputError: a batch is smaller than ranks x accumulation.
    """
    windows = window_sizes(sentences, recipe.shard_size * recipe.window_shards)
    least = min(smallest_batch(size, recipe.batch_size) for size in windows)
    parts = ranks.world * recipe.gradient_accumulation
    if least < parts:
        raise InputError(
            f"batch_size: a batch of {least} sentences can't be split over {ranks.world} ranks and "
            f"{recipe.gradient_accumulation} micro-batches; change --batch-size, --gradient-accumulation or "
            "--max-sentences"
        )


def rank_share(batch: np.ndarray, rank: int, world: int) -> np.ndarray:
    """A rank's part of a batch in ascending order of length: dealt out back and forth, so that all get equal work.

    Example, 8 sentences on 2 ranks: rank 0 takes 0 3 4 7, rank 1 takes 1 2 5 6.
    """
    indices = np.arange(len(batch))
    turn, seat = indices // world, indices % world
    return batch[np.where(turn % 2 == 0, seat, world - 1 - seat) == rank]


def micro_shares(sentences: int, ranks: Ranks, count: int) -> list[np.ndarray]:
    """Indices of this rank's share of a batch of so many sentences, in `count` micro-batches."""
    share = rank_share(np.arange(sentences), ranks.rank, ranks.world)
    return [rank_share(share, number, count) for number in range(count)]


def idle_share(lengths: np.ndarray, world: int) -> float:
    """The share of the ranks' time that is spent waiting for the rank with the most tokens of a batch."""
    tokens = [int(rank_share(lengths, rank, world).sum()) for rank in range(world)]
    return 1 - sum(tokens) / (world * max(tokens))
