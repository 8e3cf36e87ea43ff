"""The network laid out for inference, by precision: weights cast, and on a CPU repacked, or int8 (model/int8.py).

Shapes: N tokens, I inputs, O outputs.

torch has no public call for a product that reads repacked weights, applies the activation in the same pass, or
multiplies int8 on a CPU. So these two files, and they alone, call the oneDNN operators that torch's own compiler emits
for such products, `mkldnn::_linear_pointwise` and `onednn::qlinear_pointwise`, and what packs for them.
"""

import os
from collections.abc import Callable

import torch

from shortstack.model.bert import Layer, Linear, Network, Norm, Part
from shortstack.model.files import InputError
from shortstack.model.int8 import FUSED as INT8_FUSED
from shortstack.model.int8 import Calibration, quantise, then_activate

PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")
LayOut = Callable[[Linear], Part]  # a matrix product made ready to compute: weights cast, repacked or quantised once
FUSED = INT8_FUSED | {"gelu": ("gelu", [], "none")}  # GELU itself, where a byte can't tell its tanh formula from it

# oneDNN compiles a kernel for every shape, and torch and oneDNN each keep the last 1,024 of them: 400 MB, hardly ever
# used again, since packed batches differ in their number of tokens. A forward pass needs a dozen; a quarter of it all
# leaves room for other models in the process. Both read their limit at the first product, so here is soon enough.
for cache in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
    os.environ.setdefault(cache, "256")


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware; without, bf16 is emulated and many times slower than fp32."""
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16") or found.get("bf16") or found.get("sve_bf16"))


def cpu_has_int8() -> bool:
    """Whether this CPU multiplies int8 in hardware and this build of torch has the products for it."""
    found = torch.cpu.get_capabilities()
    hardware = found.get("avx512_vnni") or found.get("avx_vnni") or found.get("amx_int8")
    operators = hasattr(torch.ops.onednn, "qlinear_prepack") and hasattr(torch.ops.onednn, "qlinear_pointwise")
    return bool(hardware and operators and torch.backends.mkldnn.is_available())


def resolve_precision(precision: str, device: torch.device) -> str:
    """Turn `auto` into what encodes best: fp16 on a GPU, bf16 on a CPU that has the instructions, else fp32.

    A GPU multiplies both at the same rate, and fp16 rounds eight times finer. A number beyond its range, 65,504, makes
    an embedding NaN or infinite, which `Embedder.embed` can look for.

    Raises:
        InputError: an unknown precision, or one that this device has no use for.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision: {precision!r} is not one of {', '.join(PRECISIONS)}")
    if precision == "auto":
        if device.type == "cuda":
            return "fp16"
        return "bf16" if device.type == "cpu" and cpu_has_bf16() else "fp32"
    if precision == "int8" and device.type != "cpu":
        raise InputError("precision: int8 is for encoding on a CPU; take bf16 or fp16 on a GPU")
    if precision == "int8" and not cpu_has_int8():
        raise InputError(
            "precision: int8 needs int8 instructions (VNNI, AMX), which this CPU or torch lacks; take fp32"
        )
    if precision == "fp16" and device.type == "cpu":
        raise InputError("precision: fp16 needs a GPU; take bf16 or fp32 on a CPU")
    return precision


def dtype_of(precision: str) -> torch.dtype:
    """The type that activations have between products."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)


@torch.no_grad()
def prepare(network: Network, precision: str, device: torch.device, calibration: Calibration | None = None) -> Network:
    """Lay out a network's weights for inference: cast and repack them once instead of in every forward.

    Args:
        network: a DistilledBert's own; later changes of its weights do not reach the result.
        precision: one of PRECISIONS but auto.
        device: where the weights are.
        calibration: what int8 rounds by.
    """
    if precision == "int8":
        assert calibration is not None
        return quantise(network, calibration, torch.bfloat16 if cpu_has_bf16() else torch.float32)
    dtype, lay_out = dtype_of(precision), layout_for(precision, device)

    def part_of(part: Part) -> Part:
        if isinstance(part, Linear):
            return lay_out(part)
        assert isinstance(part, Norm)
        return part.detached_as(dtype)

    layers = [Layer(*map(part_of, layer)) for layer in network.layers]
    return network._replace(embed=lambda tokens: network.embed(tokens).to(dtype), layers=layers)


def layout_for(precision: str, device: torch.device) -> LayOut:
    """How a product is laid out for a precision on a device."""
    if device.type == "cpu" and torch.backends.mkldnn.is_available() and repacking_pays(precision):
        return repacked_product(dtype_of(precision))
    return cast_product(dtype_of(precision))


def repacking_pays(precision: str) -> bool:
    """Whether oneDNN's products of repacked weights are the fastest that this CPU has.

    With AVX512 they are, and MKL's run at half their rate on AMD's processors. With AVX2 alone MKL's are ahead by an
    eighth, and an activation fused into oneDNN's product costs more than one on its own (docs/speed.md).
    """
    if precision == "bf16":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # without, it is slow, but it computes
    return not torch.backends.mkl.is_available() or bool(torch.cpu.get_capabilities().get("avx512_f"))


def cast_product(dtype: torch.dtype) -> LayOut:
    """Weights cast once."""
    return lambda linear: linear.detached_as(dtype)


def repacked_product(dtype: torch.dtype) -> LayOut:
    """Weights cast and blocked once in the order oneDNN's kernels read them.

    It saves a reordering on every call. An activation or a residual done on the product's output while that is in cache
    saves writing and reading (N, O) numbers again.
    """

    def lay_out(linear: Linear) -> Part:
        linear = linear.detached_as(dtype)
        packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.contiguous(), None)
        bias, fused = linear.bias, FUSED.get(linear.activation, FUSED[""])
        multiply = torch.ops.mkldnn._linear_pointwise

        def product(x_NI: torch.Tensor, residual_NO: torch.Tensor | None = None, dropout: float = 0) -> torch.Tensor:
            if residual_NO is not None:
                return multiply.binary(x_NI, residual_NO, packed, bias, "add")
            return multiply.default(x_NI, packed, bias, *fused)

        return then_activate(product, linear.activation)

    return lay_out
