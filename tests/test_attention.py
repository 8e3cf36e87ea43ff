"""Every form of attention gives the same values and gradients, and the form follows device, type and gradient."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from shortstack.model.attention import attention
from shortstack.model.attention_on_cpu import LONGEST_FOR_PRODUCTS, attention_by_products, products_are_faster
from shortstack.model.tokens import PackedTokens, Tokenized

LENGTHS = [1, 3, 3, 3, 20, 70]


def packed(lengths: list[int]) -> PackedTokens:
    return PackedTokens.pack(Tokenized(np.full(sum(lengths), 7, dtype=np.int32), np.array(lengths)))


def values_and_gradient(
    attend: Callable[..., torch.Tensor], qkv: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    qkv = qkv.detach().requires_grad_()
    out = attend(*qkv)
    (out.float() * weight).sum().backward()
    assert qkv.grad is not None
    return out.detach().float(), qkv.grad.float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 2, 15, 100])
@pytest.mark.parametrize("first_only", [False, True])
def test_products_equal_the_kernel_in_value_and_gradient(dtype: torch.dtype, length: int, first_only: bool) -> None:
    """Both in the given type are as near to the kernel in fp64 as that type allows."""
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(3, 2, 4, length, 8, generator=generator, dtype=torch.float64).to(dtype).double()
    rows = 1 if first_only else length
    weight = torch.randn(2, 4, rows, 8, generator=generator)
    tolerance = 1e-5 if dtype == torch.float32 else 0.04

    def kernel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q[:, :, :rows], k, v)

    def products(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attention_by_products(q[:, :, :rows], k, v)

    wanted = values_and_gradient(kernel, exact, weight)
    found = values_and_gradient(products, exact.to(dtype), weight)
    for each, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(each, other, atol=tolerance * float(other.abs().max()), rtol=0)


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("first_only", [False, True])
def test_bf16_attends_within_each_sentence_as_fp32_does(gradient: bool, first_only: bool) -> None:
    """Short and long sentences, so that every form that a CPU uses takes part."""
    tokens = packed(LENGTHS)
    exact = torch.randn(sum(LENGTHS), 3, 2, 8, generator=torch.Generator().manual_seed(1)).bfloat16().float()
    exact.requires_grad_(gradient)
    half = exact.detach().bfloat16().requires_grad_(gradient)
    wanted, found = (attention(qkv, tokens, first_only) for qkv in (exact, half))
    assert found.dtype == torch.bfloat16 and found.requires_grad is gradient
    torch.testing.assert_close(found.float(), wanted, atol=0.03, rtol=0.02)
    if gradient:
        for out in (wanted, found):
            out.float().square().sum().backward()
        assert exact.grad is not None and half.grad is not None
        torch.testing.assert_close(half.grad.float(), exact.grad, atol=0.1, rtol=0.05)


def test_the_form_follows_type_gradient_and_length() -> None:
    long = torch.zeros(2, 1, LONGEST_FOR_PRODUCTS, 8, dtype=torch.bfloat16)
    short = long[:, :, 1:]
    assert products_are_faster(short) and products_are_faster(short.float()) and products_are_faster(short[:1])
    assert not products_are_faster(long) and products_are_faster(long.requires_grad_())
    one = torch.zeros(1, 1, 16, 8)
    assert products_are_faster(one) and not products_are_faster(one.bfloat16())
    assert products_are_faster(one.bfloat16(), one_rounding=True)
    assert not products_are_faster(short.to("meta"))


def test_dropout_keeps_the_mean() -> None:
    """Averaged over many draws, attention is what it is without dropout: the weights that stay are scaled up."""
    qkv = torch.randn(6, 3, 4, 8, generator=torch.Generator().manual_seed(0))
    tokens = packed([6])
    torch.manual_seed(0)
    mean = torch.stack([attention(qkv, tokens, dropout=0.2) for _ in range(2000)]).mean(dim=0)
    torch.testing.assert_close(mean, attention(qkv, tokens), atol=0.06, rtol=0)
