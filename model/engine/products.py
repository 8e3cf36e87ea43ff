"""Matrix products for inference: weights cast once, and on a CPU repacked. int8 is in int8.py.

Shapes: N tokens, I inputs, O outputs.

torch has no public call for a product that reads repacked weights, applies the activation in the same pass, or
multiplies int8 on a CPU. So this file and int8.py, and no others, call the oneDNN operators that torch's own compiler
emits for such products, `mkldnn::_linear_pointwise` and `onednn::qlinear_pointwise`, and those that pack for them.
"""

import os
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN

from shortstack.model.engine.gelu import linear_gelu
from shortstack.model.network import Layer
from shortstack.model.precision import dtype_of

# What oneDNN computes on a product's output in the same pass, as its operators want it: name, scalars, algorithm.
FUSED: dict[str, tuple[str, list[None], str]] = {
    "": ("none", [], ""),
    "gelu": ("gelu", [], "none"),
    "relu": ("relu", [], ""),
}


@dataclass
class Linear:
    """The weights of a product, detached from autograd, and the activation after it."""

    weight: torch.Tensor  # (O, I)
    bias: torch.Tensor | None  # (O,)
    activation: str = ""  # its name in transformers; "" for none

    def to(self, dtype: torch.dtype) -> "Linear":
        return Linear(self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype), self.activation)


def linears_of(layer: Layer) -> dict[str, Linear]:
    """The four products of a layer in fp32; queries, keys and values are one."""

    def linear(module: nn.Linear, activation: str = "") -> Linear:
        return Linear(module.weight.detach(), module.bias.detach(), activation)

    weight, bias = layer.joined_qkv()
    return {
        "qkv": Linear(weight.detach(), bias.detach()),
        "attention_output": linear(layer.attention_output),
        "intermediate": linear(layer.intermediate, layer.activation),
        "output": linear(layer.output),
    }


class Norm:
    """A layer norm with its weights cast to a type."""

    def __init__(self, norm: nn.LayerNorm, dtype: torch.dtype) -> None:
        self.weight, self.bias = norm.weight.detach().to(dtype), norm.bias.detach().to(dtype)
        self.eps = norm.eps

    def __call__(self, x_ND: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x_ND, self.weight.shape, self.weight, self.bias, self.eps)


class Product:
    """A product with its bias and activation, its weights cast to a type."""

    def __init__(self, linear: Linear, dtype: torch.dtype) -> None:
        self.linear = linear.to(dtype)

    def __call__(self, x_NI: torch.Tensor, residual_NO: torch.Tensor | None = None) -> torch.Tensor:
        """(N, O), added to a residual where one is given."""
        weight, bias, activation = self.linear.weight, self.linear.bias, self.linear.activation
        if activation == "gelu" and bias is not None:
            product_NO = linear_gelu(x_NI, weight, bias)
        else:
            product_NO = F.linear(x_NI, weight, bias)
            product_NO = ACT2FN[activation](product_NO) if activation else product_NO
        return product_NO if residual_NO is None else residual_NO + product_NO


class RepackedProduct(Product):
    """A product whose weights are stored once in the order in which oneDNN's kernels read them.

    This saves reordering them in every call. The activation or the residual is applied while the output is still in the
    cache, which saves writing and reading (N, O) numbers once more.
    """

    def __init__(self, linear: Linear, dtype: torch.dtype) -> None:
        limit_kernel_caches()
        linear = linear.to(dtype)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.contiguous(), None)
        self.bias, self.fused = linear.bias, FUSED.get(linear.activation, FUSED[""])
        self.activate = None if linear.activation in FUSED else ACT2FN[linear.activation]
        self.multiply = torch.ops.mkldnn._linear_pointwise.default
        self.multiply_and_add = torch.ops.mkldnn._linear_pointwise.binary

    def __call__(self, x_NI: torch.Tensor, residual_NO: torch.Tensor | None = None) -> torch.Tensor:
        if residual_NO is not None:
            return self.multiply_and_add(x_NI, residual_NO, self.packed, self.bias, "add")
        product_NO = self.multiply(x_NI, self.packed, self.bias, *self.fused)
        return product_NO if self.activate is None else self.activate(product_NO)


def product_for(linear: Linear, precision: str, device: torch.device) -> Product:
    """The fastest product on a device, for a precision other than int8."""
    repack = device.type == "cpu" and torch.backends.mkldnn.is_available() and repacking_pays(precision)
    return (RepackedProduct if repack else Product)(linear, dtype_of(precision))


def repacking_pays(precision: str) -> bool:
    """Whether oneDNN's products of repacked weights are the fastest that this CPU has.

    With AVX512 they are, and MKL's run at half their rate on AMD's processors. With AVX2 alone MKL's are ahead by an
    eighth, and an activation fused into oneDNN's product costs more than one on its own (docs/speed.md).
    """
    if precision == "bf16":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # without it, products are slow but work
    return not torch.backends.mkl.is_available() or bool(torch.cpu.get_capabilities().get("avx512_f"))


def limit_kernel_caches() -> None:
    """Let oneDNN keep the kernels of the last 256 shapes only, unless the environment says otherwise.

    It compiles a kernel for every shape, and torch and oneDNN each keep the last 1,024 of them: 400 MB, hardly ever
    used again, since packed batches differ in their number of tokens. A forward pass needs a dozen; 256 leave room for
    other models in the process. torch and oneDNN read these variables at the first product.
    """
    for cache in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        os.environ.setdefault(cache, "256")
