"""Batches: every sentence once, near in length, at random, and dealt out to ranks in equal shares."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortstack.distillation.data.batches import POOL, rank_share, smallest_batch, window_batches


def batches(lengths: np.ndarray, batch_size: int, seed: int = 0) -> list[np.ndarray]:
    return window_batches(lengths, batch_size, np.random.default_rng(seed))


@pytest.fixture(scope="module")
def lengths() -> np.ndarray:
    """Tokens of 10,000 sentences, spread like those of real text."""
    return 3 + np.random.default_rng(1).geometric(1 / 20, size=10_000)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=300), st.integers(1, 70))
def test_each_sentence_is_in_one_batch(lengths: list[int], batch_size: int) -> None:
    found = batches(np.array(lengths), batch_size)
    assert sorted(np.concatenate(found)) == list(range(len(lengths)))
    assert len(found) == -(-len(lengths) // batch_size)
    assert all(0 < len(batch) <= batch_size for batch in found)


@pytest.mark.parametrize("count", [10_000, 64 * 156, 64 * POOL, 64 * POOL + 1, 65, 64, 1])
def test_no_batch_is_far_smaller_than_the_others(lengths: np.ndarray, count: int) -> None:
    """What is left over at the end joins the pool before it, so every one of many ranks gets a sentence."""
    sizes = [len(batch) for batch in batches(lengths[:count], 64)]
    assert sum(sizes) == count and len(sizes) == -(-count // 64) and max(sizes) <= 64
    assert min(sizes) == smallest_batch(count, 64) >= min(count, 32)
    if count > 64 * POOL:
        assert min(sizes) >= 60


def test_a_batch_ascends_and_is_near_in_length(lengths: np.ndarray) -> None:
    found = batches(lengths, 64)
    assert all((np.diff(lengths[batch]) >= 0).all() for batch in found)
    distinct = np.mean([len(np.unique(lengths[batch])) for batch in found])
    at_random = np.random.default_rng(0).permutation(len(lengths))[: 64 * 156].reshape(-1, 64)
    assert distinct < 0.3 * np.mean([len(np.unique(lengths[batch])) for batch in at_random])


def test_seeds_differ_in_who_meets_whom_and_in_which_order(lengths: np.ndarray) -> None:
    first, again, other = batches(lengths, 64, 0), batches(lengths, 64, 0), batches(lengths, 64, 1)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    same_partners = [len(np.intersect1d(a, b)) for a in first[:20] for b in other]
    assert max(same_partners) < 40
    means = np.array([lengths[batch].mean() for batch in first])
    assert abs(np.corrcoef(means[1:], means[:-1])[0, 1]) < 0.3  # steps do not go from short to long


@given(st.integers(1, 200), st.integers(1, 9))
def test_ranks_share_a_batch(size: int, world: int) -> None:
    batch = np.arange(100, 100 + size)
    shares = [rank_share(batch, rank, world) for rank in range(world)]
    assert sorted(np.concatenate(shares)) == batch.tolist()
    counts = [len(share) for share in shares]
    assert max(counts) - min(counts) <= 1
    assert all((np.diff(share) > 0).all() for share in shares)


def test_the_example_of_the_docstring() -> None:
    assert rank_share(np.arange(8), 0, 2).tolist() == [0, 3, 4, 7]
    assert rank_share(np.arange(8), 1, 2).tolist() == [1, 2, 5, 6]


@pytest.mark.parametrize("world", [2, 4, 8])
def test_ranks_have_equal_work(lengths: np.ndarray, world: int) -> None:
    idle = []
    for batch in batches(lengths, 64):
        tokens = [lengths[rank_share(batch, rank, world)].sum() for rank in range(world)]
        idle.append(1 - np.mean(tokens) / max(tokens))
    assert np.mean(idle) < 0.03
