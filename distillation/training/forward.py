"""The network's forward once more, over flat weights (flat.py): the same numbers, fewer passes over the memory.

A product reads its weights in the type it computes in, and its backward pass writes their gradients where AdamW reads
them. The layers' sums stay in fp32, as autocast keeps them, and each norm gives them in half precision as well.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN

from shortstack.distillation.training.flat import FlatWeights
from shortstack.model.attention import attention
from shortstack.model.kernels import add_and_norm
from shortstack.model.network import Layer, PackedForward
from shortstack.model.pooling import Pooling, pool
from shortstack.model.tokens import PackedTokens


class _Product(torch.autograd.Function):
    """x Wᵀ + b, whose backward pass writes the gradients of W and b into memory that is there already."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        of_weight: torch.Tensor,
        of_bias: torch.Tensor,
    ) -> torch.Tensor:
        x = x.to(weight.dtype)
        ctx.save_for_backward(x, weight)
        ctx.places = of_weight, of_bias
        with torch.autocast(x.device.type, enabled=False):  # in the weights' own type
            return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        of_weight, of_bias = ctx.places
        torch.mm(gradient.t(), x, out=of_weight)
        torch.sum(gradient, 0, out=of_bias)
        return gradient @ weight, None, None, None, None


class FlatProduct:
    """A product of linear modules with the same input, side by side, their weights in flat arrays."""

    def __init__(self, flat: FlatWeights, *linears: nn.Linear) -> None:
        weights: list[Any] = [linear.weight for linear in linears]
        biases: list[Any] = [linear.bias for linear in linears]
        self.weight, self.of_weight = (flat.view(array, *weights) for array in (flat.values, flat.gradients))
        self.bias, self.of_bias = (flat.view(array, *biases) for array in (flat.values, flat.gradients))

    def __call__(self, x_NI: torch.Tensor) -> torch.Tensor:
        return _Product.apply(x_NI, self.weight, self.bias, self.of_weight, self.of_bias)


def groups_of(layers: list[Layer]) -> list[list[nn.Parameter]]:
    """The weights and biases of the layers' products in groups; those of queries, keys and values lie together."""
    groups: list[list[Any]] = []
    for layer in layers:
        for linears in products_of(layer):
            groups += [[linear.weight for linear in linears], [linear.bias for linear in linears]]
    return groups


def products_of(layer: Layer) -> list[list[nn.Linear]]:
    """The linear modules of each of a layer's four products."""
    return [[layer.query, layer.key, layer.value], [layer.attention_output], [layer.intermediate], [layer.output]]


class FlatForward:
    """Stands in for `forward_packed` of a network in training, one backward pass for each step.

    Args:
        bert: the network.
        flat: the weights of `groups_of` its layers.
    """

    def __init__(self, bert: PackedForward, flat: FlatWeights) -> None:
        self.bert, self.dtype = bert, flat.values.dtype
        self.layers = bert.layers()
        self.products = [[FlatProduct(flat, *linears) for linears in products_of(layer)] for layer in self.layers]

    def __call__(self, tokens: PackedTokens, pooling: Pooling | None = None) -> torch.Tensor:
        """See `forward_packed`."""
        sums, bias_HTT = self.bert.embed_packed(tokens), self.bert.position_bias(tokens)
        half, dropout = sums.to(self.dtype), self.bert.dropout
        for number, (layer, products) in enumerate(zip(self.layers, self.products, strict=True), start=1):
            qkv, attention_output, intermediate, output = products
            first_only = pooling is Pooling.CLS and number == len(self.layers)
            qkv_N3HE = qkv(half).view(len(half), 3, layer.heads, -1)
            context_ND = attention(qkv_N3HE, tokens, first_only, dropout, bias_HTT).flatten(1)
            if first_only:
                sums = sums.index_select(0, tokens.first_rows)
            product = F.dropout(attention_output(context_ND), dropout)
            sums, half = add_and_norm(product, sums, *norm_of(layer.attention_norm))
            product = F.dropout(output(ACT2FN[layer.activation](intermediate(half))), dropout)
            sums, half = add_and_norm(product, sums, *norm_of(layer.output_norm))
        return sums if pooling is None else pool(sums, tokens, pooling)


def norm_of(norm: nn.LayerNorm) -> tuple[torch.Tensor, torch.Tensor, float]:
    """What `add_and_norm` wants of a norm."""
    return norm.weight, norm.bias, norm.eps
