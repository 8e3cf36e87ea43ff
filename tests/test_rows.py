"""The word table trained by the batch's rows: dense AdamW where every row occurs, untouched rows left alone."""

import copy
import math

import numpy as np
import pytest
import torch
from tiny import tokens_of
from torch import nn

from shortstack.distillation.training.rows import BatchRows
from shortstack.model.tokens import Tokenized

WORDS, SIZE = 11, 4


@pytest.fixture
def table() -> nn.Parameter:
    weights = torch.randn(WORDS, SIZE, generator=torch.Generator().manual_seed(0))
    return nn.Parameter(weights, requires_grad=False)


def target_loss(vectors_ND: torch.Tensor, words: np.ndarray) -> torch.Tensor:
    """Something whose gradient differs from word to word and grows with how often a word occurs."""
    return (vectors_ND - torch.from_numpy(words)[:, None] / 10).square().sum()


def adamw(*parameters: torch.Tensor, decay: float = 0.1) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=0.05, betas=(0.9, 0.999), eps=1e-8, weight_decay=decay)


def step(table: nn.Parameter, optimizer: torch.optim.Optimizer, sentences: Tokenized) -> BatchRows:
    rows = BatchRows(table, sentences)
    target_loss(rows.of(sentences), sentences.ids).backward()
    rows.step(optimizer, torch.tensor(False))
    return rows


def test_equals_dense_adamw_where_every_word_occurs_in_every_step(table: nn.Parameter) -> None:
    dense = nn.Parameter(table.detach().clone())
    ours, theirs = adamw(nn.Parameter(torch.zeros(1))), adamw(dense)
    generator = np.random.default_rng(0)
    for rate in (0.05, 0.04, 0.03, 0.02, 0.01):
        words = generator.permutation(np.concatenate([np.arange(WORDS), generator.integers(WORDS, size=20)]))
        for group in (*ours.param_groups, *theirs.param_groups):
            group["lr"] = rate
        theirs.zero_grad()
        target_loss(nn.functional.embedding(torch.from_numpy(words), dense), words).backward()
        theirs.step()
        step(table, ours, Tokenized(words.astype(np.int32), np.array([5, 1, 11, 14])))
        torch.testing.assert_close(table.data, dense.data, atol=1e-6, rtol=0)


def test_words_that_do_not_occur_stay_as_they_are(table: nn.Parameter) -> None:
    before = table.detach().clone()
    optimizer = adamw(nn.Parameter(torch.zeros(1)))
    for _ in range(3):
        rows = step(table, optimizer, tokens_of([7, 2, 7], [9]))
    assert rows.ids.tolist() == [2, 7, 9]
    untouched = [word for word in range(WORDS) if word not in (2, 7, 9)]
    assert torch.equal(table[untouched], before[untouched])
    assert (table[[2, 7, 9]] != before[[2, 7, 9]]).all()
    state = optimizer.state[table]
    assert state["step"].tolist() == [3.0 if word in (2, 7, 9) else 0.0 for word in range(WORDS)]
    assert not state["exp_avg"][untouched].any() and not state["exp_avg_sq"][untouched].any()


def test_a_word_that_comes_late_takes_its_own_first_step(table: nn.Parameter) -> None:
    fresh = copy.deepcopy(table)
    optimizer = adamw(nn.Parameter(torch.zeros(1)))
    for _ in range(5):
        step(table, optimizer, tokens_of([1]))
    step(table, optimizer, tokens_of([1, 4]))
    step(fresh, adamw(nn.Parameter(torch.zeros(1))), tokens_of([4]))
    torch.testing.assert_close(table[4], fresh[4])


def test_a_step_that_is_left_out_changes_nothing(table: nn.Parameter) -> None:
    optimizer = adamw(nn.Parameter(torch.zeros(1)))
    step(table, optimizer, tokens_of([1, 4]))
    before = {"table": table.detach().clone()} | {key: value.clone() for key, value in optimizer.state[table].items()}
    rows = BatchRows(table, tokens_of([4, 5]))
    (rows.vectors.sum() * math.nan).backward()
    rows.step(optimizer, torch.tensor(True))
    after = {"table": table} | optimizer.state[table]
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_gradients_of_a_repeated_word_are_summed(table: nn.Parameter) -> None:
    sentences = tokens_of([3, 3], [5, 3, 8])
    rows = BatchRows(table, sentences)
    weights = torch.arange(1.0, 6)
    (rows.of(sentences).sum(dim=1) * weights).sum().backward()
    assert rows.vectors.grad is not None
    assert rows.vectors.grad[:, 0].tolist() == [1 + 2 + 4, 3, 5]  # words 3, 5 and 8


def test_pieces_of_a_batch_look_up_the_same_rows(table: nn.Parameter) -> None:
    sentences = tokens_of([10, 0], [4], [0, 0, 6])
    rows = BatchRows(table, sentences)
    first, others = sentences.take(np.array([0])), sentences.take(np.array([1, 2]))
    for piece in (sentences, others, first):
        assert torch.equal(rows.of(piece), table[piece.ids])
    for piece in (first, others):
        rows.of(piece).sum().backward()
    assert rows.vectors.grad is not None and rows.vectors.grad[:, 0].tolist() == [3, 1, 1, 1]  # words 0, 4, 6, 10
