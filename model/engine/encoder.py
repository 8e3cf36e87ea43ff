"""The engine: the forward pass of network.py again, with weights that are laid out for encoding."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from shortstack.model.attention import attention, joined, runs
from shortstack.model.attention_on_cpu import attention_by_products, products_are_faster
from shortstack.model.engine.int8 import Calibration, quantise
from shortstack.model.engine.products import Norm, Product, linears_of, product_for
from shortstack.model.kernels import add_and_norm_half
from shortstack.model.network import Layer, PackedForward
from shortstack.model.pooling import Pooling, pool
from shortstack.model.precision import cpu_has_bf16, dtype_of
from shortstack.model.tokens import PackedTokens


@dataclass
class EngineLayer:
    """The products and norms of one layer."""

    qkv: Product  # (N, D) -> (N, 3 D): queries, keys and values in one
    attention_output: Product  # (N, D) and a residual -> (N, D)
    attention_norm: Norm
    intermediate: Product  # (N, D) -> (N, 4 D), its activation applied
    output: Product  # (N, 4 D) and a residual -> (N, D)
    output_norm: Norm

    @classmethod
    def of(cls, layer: Layer, products: dict[str, Product], dtype: torch.dtype) -> "EngineLayer":
        """The products by name, and the layer's norms in this type."""
        norms = Norm(layer.attention_norm, dtype), Norm(layer.output_norm, dtype)
        return cls(**products, attention_norm=norms[0], output_norm=norms[1])


class Engine:
    """A network laid out for encoding in one precision.

    Attributes:
        layers: the encoder's layers, laid out.
        device: where the weights were when they were laid out.
    """

    def __init__(self, bert: PackedForward, layers: list[EngineLayer], dtype: torch.dtype, is_int8: bool) -> None:
        self.bert, self.layers, self.dtype, self.is_int8 = bert, layers, dtype, is_int8
        weights = bert.parameters()  # type: ignore[attr-defined]
        self.weights = [weight for weight in weights if not weight.is_inference()]
        self.versions = [weight._version for weight in self.weights]
        self.device = bert.embeddings.LayerNorm.weight.device

    def __call__(self, tokens: PackedTokens, pooling: Pooling | None = None) -> torch.Tensor:
        """The same as the network's `forward_packed`, but for the rounding of the precision."""
        hidden, bias_HTT = self.bert.embed_packed(tokens).to(self.dtype), self.bert.position_bias(tokens)
        attend, heads = (attention_of_one_form if self.is_int8 else attention), self.bert.config.num_attention_heads
        for number, layer in enumerate(self.layers, start=1):
            first_only = pooling is Pooling.CLS and number == len(self.layers)
            qkv_N3HE = layer.qkv(hidden).view(len(hidden), 3, heads, -1)
            context_ND = attend(qkv_N3HE, tokens, first_only, bias_HTT=bias_HTT).flatten(1)
            if first_only:
                hidden = hidden.index_select(0, tokens.first_rows)
            hidden = add_and_norm(layer.attention_output, layer.attention_norm, context_ND, hidden)
            hidden = add_and_norm(layer.output, layer.output_norm, layer.intermediate(hidden), hidden)
        if pooling is None:
            return hidden
        return pool(hidden, tokens, pooling)

    def is_outdated(self) -> bool:
        """Whether a weight was changed in place since. The step of a fused optimizer is not noticed."""
        return [weight._version for weight in self.weights] != self.versions

    def with_layers(self, layers: Sequence[int]) -> "Engine":
        """This engine with only these of its layers, counted from 0; nothing is copied."""
        return Engine(self.bert, [self.layers[number] for number in layers], self.dtype, self.is_int8)


def add_and_norm(product: Product, norm: Norm, x_NI: torch.Tensor, residual_NO: torch.Tensor) -> torch.Tensor:
    """The norm of residual + product: on a GPU in one pass over the sum, elsewhere the sum is the product's own."""
    if residual_NO.is_cuda:
        return add_and_norm_half(product(x_NI), residual_NO, norm.weight, norm.bias, norm.eps)
    return norm(product(x_NI, residual_NO))


@torch.no_grad()
def lay_out(bert: PackedForward, precision: str, calibration: Calibration | None = None) -> Engine:
    """Make an engine from the current weights of a network; only int8 needs a calibration."""
    device = bert.embeddings.LayerNorm.weight.device
    dtype = dtype_of(precision)
    layers = []
    for number, layer in enumerate(bert.layers()):
        products: dict[str, Product]
        linears = linears_of(layer)
        if precision == "int8":
            assert calibration is not None
            ranges = {name: calibration[f"{number}.{name}"] for name in linears}
            products = quantise(linears, ranges, torch.bfloat16 if cpu_has_bf16() else torch.float32)
        else:
            products = {name: product_for(linear, precision, device) for name, linear in linears.items()}
        layers.append(EngineLayer.of(layer, products, dtype))
    return Engine(bert, layers, dtype, precision == "int8")


def attention_of_one_form(
    qkv_N3HE: torch.Tensor, tokens: PackedTokens, first_only: bool = False, *, bias_HTT: torch.Tensor | None = None
) -> torch.Tensor:
    """`attention` on a CPU, computed in the same way however many sentences share a length.

    Two ways of computing may differ in the last bit. int8 rounds so coarsely that this could become a whole step of its
    scale, and an embedding would depend on the sentences beside it.
    """
    return joined(
        [
            attention_by_products(q, k, v, bias)
            if products_are_faster(k, one_rounding=True)
            else torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
            for q, k, v, bias in runs(qkv_N3HE, tokens, first_only, bias_HTT)
        ]
    )
