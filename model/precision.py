"""The types of number that a model computes with, and which of them a device can and should use."""

import torch

from shortstack.model.files import InputError

PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware; if not, bf16 is emulated and many times slower than fp32."""
    has = torch.cpu.get_capabilities()
    return any(bool(has.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))


def cpu_has_int8() -> bool:
    """Whether this CPU multiplies int8 in hardware and this build of torch has the products for it."""
    has = torch.cpu.get_capabilities()
    hardware = has.get("avx512_vnni") or has.get("avx_vnni") or has.get("amx_int8")
    operators = hasattr(torch.ops.onednn, "qlinear_prepack") and hasattr(torch.ops.onednn, "qlinear_pointwise")
    return bool(hardware and operators and torch.backends.mkldnn.is_available())


def resolve_precision(precision: str, device: torch.device) -> str:
    """Turn `auto` into what encodes best: fp16 on a GPU, bf16 on a CPU that has the instructions, else fp32.

    A GPU multiplies both at the same rate, and fp16 rounds eight times finer. A number beyond its range, 65,504, makes
    an embedding NaN or infinite; `Embedder.embed` can check for that.

    Raises:
        InputError: an unknown precision, or one that this device does not support.
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
