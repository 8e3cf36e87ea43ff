"""cls and mean pooling over packed tokens."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import positions_of

from shortstack.model.pooling import Pooling, mean_by_runs, mean_by_sentences, pool
from shortstack.model.tokens import PackedTokens


def by_hand(hidden: torch.Tensor, lengths: list[int], pooling: Pooling) -> torch.Tensor:
    sentences = hidden.split(lengths)
    return torch.stack([each[0] if pooling is Pooling.CLS else each.mean(dim=0) for each in sentences])


def packed(lengths: list[int]) -> PackedTokens:
    numbers = torch.tensor(lengths)
    return PackedTokens(torch.zeros(sum(lengths), dtype=torch.long), positions_of(numbers), numbers)


@pytest.mark.parametrize("pooling", list(Pooling))
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12).map(sorted), seed=st.integers(0, 99))
def test_equals_pooling_each_sentence_by_hand(pooling: Pooling, lengths: list[int], seed: int) -> None:
    hidden = torch.randn(sum(lengths), 7, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(pool(hidden, packed(lengths), pooling), by_hand(hidden, lengths, pooling))


@pytest.mark.parametrize("pooling", list(Pooling))
def test_half_precision_is_pooled_in_fp32(pooling: Pooling) -> None:
    hidden = torch.full((4096, 2), 1 + 2**-7, dtype=torch.bfloat16)  # a bf16 sum of 4096 of these is far off
    pooled = pool(hidden, packed([4096]), pooling)
    assert pooled.dtype == torch.float32
    assert pooled.tolist() == [[1 + 2**-7, 1 + 2**-7]]


def test_gradients_reach_the_pooled_tokens_only() -> None:
    hidden = torch.randn(5, 3, requires_grad=True)
    pool(hidden, packed([2, 3]), Pooling.CLS).sum().backward()
    assert hidden.grad is not None and hidden.grad[:, 0].tolist() == [1, 0, 1, 0, 0]
    hidden.grad = None
    pool(hidden, packed([2, 3]), Pooling.MEAN).sum().backward()
    torch.testing.assert_close(hidden.grad[:, 0], torch.tensor([1 / 2, 1 / 2, 1 / 3, 1 / 3, 1 / 3]))


def test_the_mean_of_all_sentences_at_once_is_that_of_runs() -> None:
    """A GPU's form and a CPU's: the same but for the order of the sums, forward and backward."""
    tokens, outcomes = packed([1, 2, 2, 5, 7, 300]), []
    hidden = torch.randn(317, 9, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    for form in (mean_by_runs, mean_by_sentences):
        leaf = hidden.clone().requires_grad_()
        pooled = form(leaf, tokens)
        (pooled * torch.arange(54.0).view(6, 9)).sum().backward()
        outcomes.append((pooled.detach(), leaf.grad))
    assert outcomes[1][0].dtype == torch.float32
    torch.testing.assert_close(outcomes[0], outcomes[1], rtol=1e-6, atol=1e-6)


def test_names_are_the_fields() -> None:
    assert [str(each) for each in Pooling] == ["cls", "mean"]
    with pytest.raises(ValueError, match="max"):
        Pooling("max")
