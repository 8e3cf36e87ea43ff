"""The matrix products of inference, by precision: repacked fp32 and bf16, and dynamically quantised int8, on a CPU.

Training uses `model.bert.plain_product`. Shapes: N tokens, I inputs, O outputs.
"""

import torch

from model.bert import MakeProduct, Product, plain_product
from model.files import InputError

PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware; without, bf16 is emulated and many times slower than fp32."""
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16") or found.get("bf16") or found.get("sve_bf16"))


def resolve_precision(precision: str, device: torch.device) -> str:
    """Turn `auto` into what the device does best: bf16 where the hardware has it, else fp16 on a GPU and fp32 on a CPU.

    Raises:
        InputError: an unknown precision, or one that this device has no use for.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision: {precision!r} is not one of {', '.join(PRECISIONS)}")
    if precision == "auto":
        if device.type == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        return "bf16" if device.type == "cpu" and cpu_has_bf16() else "fp32"
    if precision == "int8" and device.type != "cpu":
        raise InputError("precision: int8 is for encoding on a CPU; take bf16 or fp16 on a GPU")
    if precision == "fp16" and device.type == "cpu":
        raise InputError("precision: fp16 needs a GPU; take bf16 or fp32 on a CPU")
    return precision


def dtype_of(precision: str) -> torch.dtype:
    """The type that activations have in a precision (int8 quantises inside its products only)."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)


def make_product_for(precision: str, device: torch.device) -> MakeProduct:
    """How `DistilledBert.prepare` lays out weights for a precision on a device."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return cast_product(dtype_of(precision))
    return repacked_product(dtype_of(precision))


def cast_product(dtype: torch.dtype) -> MakeProduct:
    """Weights cast once."""
    return lambda weight, bias: plain_product(weight.to(dtype), None if bias is None else bias.to(dtype))


def repacked_product(dtype: torch.dtype) -> MakeProduct:
    """Weights cast and blocked once in the order oneDNN's kernels read them.

    Without this a CPU's fp32 product goes to the BLAS that torch was built with, which on some processors runs at
    half of oneDNN's rate; in bf16 it saves a reordering on every call.
    """

    def make(weight: torch.Tensor, bias: torch.Tensor | None) -> Product:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype).contiguous(), None)
        cast_bias = None if bias is None else bias.detach().to(dtype)
        return lambda x_NI: torch.ops.mkldnn._linear_pointwise(x_NI, packed, cast_bias, "none", [], "")

    return make
