"""Batches: every sentence once, near in length, at random, and dealt out to ranks in equal shares."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shortstack.distillation.data import labels as module
from shortstack.distillation.data.epochs import (
    POOL,
    Epochs,
    check_batches,
    micro_shares,
    rank_share,
    smallest_batch,
    window_batches,
)
from shortstack.distillation.data.labels import LabelledSentences, Labels, Store, shard_name, write_shard
from shortstack.distillation.ranks import Ranks
from shortstack.distillation.recipe import Recipe
from shortstack.model.files import InputError
from shortstack.model.tokens import Tokenized


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


# -- epochs ----------------------------------------------------------------------------------------------------------


def write_numbered(directory: Path, number: int, start: int, stop: int) -> None:
    """A shard whose labels are the sentences' numbers."""
    lengths = np.random.default_rng(start).integers(1, 30, size=stop - start)
    tokens = Tokenized(np.repeat(np.arange(start, stop, dtype=np.int32), lengths), lengths)
    shard = LabelledSentences(tokens, torch.arange(start, stop)[:, None].float())
    write_shard(Store(directory, "", 16, "fp32"), number, shard)


def numbered_labels(directory: Path, rows: int) -> Labels:
    """Labels as they would be for `rows` sentences in shards of 16."""
    directory.mkdir(exist_ok=True)
    for number, start in enumerate(range(0, rows, 16)):
        if not (directory / shard_name(number)).exists():
            write_numbered(directory, number, start, min(start + 16, rows))
    return Labels(directory, rows, 16, 2, 1, {}, np.zeros(0), "")


def steps_of(labels: Labels, batch_size: int, epoch: int, seed: int = 0, skip: int = 0) -> list[list[int]]:
    found = []
    for batch in Epochs(labels, batch_size, seed, epoch + 1).epoch(epoch, skip):
        numbers = batch.labels.flatten().int().tolist()
        assert [int(tokens[0]) for tokens in batch.tokens] == numbers  # tokens and labels go together
        found.append(numbers)
    return found


@given(rows=st.integers(1, 100), batch_size=st.integers(1, 40), epoch=st.integers(0, 3), data=st.data())
def test_an_epoch_has_every_sentence_once_and_can_be_taken_up_anywhere(
    tmp_path_factory: pytest.TempPathFactory, rows: int, batch_size: int, epoch: int, data: st.DataObject
) -> None:
    labels = numbered_labels(tmp_path_factory.getbasetemp() / f"numbered-{rows}", rows)
    steps = steps_of(labels, batch_size, epoch)
    assert sorted(number for batch in steps for number in batch) == list(range(rows))
    assert len(steps) == Epochs(labels, batch_size, 0, 1).steps_per_epoch
    skip = data.draw(st.integers(0, len(steps)))
    assert steps_of(labels, batch_size, epoch, skip=skip) == steps[skip:]


def test_a_run_goes_on_at_any_step_of_any_epoch(tmp_path: Path) -> None:
    epochs = Epochs(numbered_labels(tmp_path / "labels", 40), 9, 0, 3)
    everything = [batch.labels.flatten().tolist() for batch in epochs.batches()]
    assert len(everything) == epochs.steps == 3 * epochs.steps_per_epoch
    for step in (1, epochs.steps_per_epoch, epochs.steps_per_epoch + 2, epochs.steps):
        assert [batch.labels.flatten().tolist() for batch in epochs.batches(step)] == everything[step:]


def test_every_epoch_has_the_same_number_of_steps(tmp_path: Path) -> None:
    labels = numbered_labels(tmp_path / "labels", 33)  # two full shards and one sentence
    steps = [len(steps_of(labels, 17, epoch)) for epoch in range(8)]
    assert steps == 8 * [Epochs(labels, 17, 0, 1).steps_per_epoch] == 8 * [3]


@pytest.mark.parametrize("rows", [96, 90])  # all shards full, and a shorter last one
def test_epochs_and_seeds_differ(tmp_path: Path, rows: int) -> None:
    labels = numbered_labels(tmp_path / "labels", rows)
    first = steps_of(labels, 8, epoch=0)
    assert steps_of(labels, 8, epoch=0) == first
    for others in (steps_of(labels, 8, epoch=1), steps_of(labels, 8, epoch=0, seed=1)):
        assert len(others) == len(first)
        batches = {tuple(sorted(batch)) for batch in first} & {tuple(sorted(batch)) for batch in others}
        assert len(batches) < 3
    firsts = [{number // 16 for batch in steps_of(labels, 8, epoch)[:4] for number in batch} for epoch in range(4)]
    assert any(first != firsts[0] for first in firsts)  # which shards meet changes too


def test_one_window_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = numbered_labels(tmp_path / "labels", 90)
    sizes = []
    real = module.read_shards
    monkeypatch.setattr(module, "read_shards", lambda paths, *of: sizes.append(len(paths)) or real(paths, *of))
    next(Epochs(labels, 8, 0, 1).batches())
    assert sizes == [2]
    assert len(steps_of(labels, 8, epoch=0, skip=4)) == 8 and sizes == [2, 2, 2]  # the skipped window is not read


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    labels = numbered_labels(tmp_path / "labels", 40)
    (labels.directory / shard_name(1)).unlink()
    with pytest.raises(InputError, match="00001.safetensors: no such file"):
        steps_of(labels, 8, epoch=0)


def test_a_last_window_too_small_for_the_ranks_is_refused() -> None:
    """Before the loop: two shards make a window, and the three sentences that are left a batch of their own."""
    recipe, ranks = Recipe(batch_size=8, shard_size=16, window_shards=2), Ranks(0, 4, torch.device("cpu"))
    check_batches(recipe, 36, ranks)
    with pytest.raises(InputError, match="a batch of 3 sentences can't be split over 4 ranks"):
        check_batches(recipe, 35, ranks)


def test_micro_batches_are_a_ranks_share_in_parts() -> None:
    shares = [micro_shares(11, Ranks(rank, 2, torch.device("cpu")), 3) for rank in (0, 1)]
    assert sorted(index for rank in shares for part in rank for index in part) == list(range(11))
    assert all(len(part) in (1, 2) for rank in shares for part in rank)
