"""The matrix products of inference, by precision: repacked fp32 and bf16, and dynamically quantised int8, on a CPU.

Training uses `model.bert.plain_product`. Shapes: N tokens, I inputs, O outputs.

torch has no public call for a product that reads repacked weights, applies the activation in the same pass, or
multiplies int8 on a CPU. So this file calls, and is the only one that does, the oneDNN operators that torch's own
compiler emits for such products, `mkldnn::_linear_pointwise` and `onednn::qlinear_pointwise`, and what packs for them.
"""

import os
import warnings

import torch

from model.bert import MakeProduct, Product, plain_product, then_activate
from model.files import InputError

PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")
PostOperation = tuple[str, list[None], str]  # what oneDNN does with a product's output: name, numbers, algorithm
NOTHING: PostOperation = ("none", [], "")
FUSED: dict[str, PostOperation] = {"gelu": ("gelu", [], "none"), "relu": ("relu", [], "")}
SMALLEST = torch.finfo(torch.float32).tiny  # a scale for what is all 0

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
    if precision == "int8" and not cpu_has_int8():
        raise InputError(
            "precision: int8 needs int8 instructions (VNNI, AMX), which this CPU or torch lacks; take fp32"
        )
    if precision == "fp16" and device.type == "cpu":
        raise InputError("precision: fp16 needs a GPU; take bf16 or fp32 on a CPU")
    return precision


def dtype_of(precision: str) -> torch.dtype:
    """The type that activations have in a precision (int8 quantises inside its products only)."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)


def make_product_for(precision: str, device: torch.device) -> MakeProduct:
    """How `DistilledBert.prepare` lays out weights for a precision on a device."""
    if precision == "int8":
        return quantised_product
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


def cast_product(dtype: torch.dtype) -> MakeProduct:
    """Weights cast once."""

    def make(weight: torch.Tensor, bias: torch.Tensor | None, activation: str = "") -> Product:
        return plain_product(weight.detach().to(dtype), None if bias is None else bias.detach().to(dtype), activation)

    return make


def repacked_product(dtype: torch.dtype) -> MakeProduct:
    """Weights cast and blocked once in the order oneDNN's kernels read them.

    It saves a reordering on every call. An activation done on the product's output while that is in cache saves writing
    and reading (N, O) numbers again.
    """

    def make(weight: torch.Tensor, bias: torch.Tensor | None, activation: str = "") -> Product:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype).contiguous(), None)
        cast_bias = None if bias is None else bias.detach().to(dtype)
        fused = FUSED.get(activation, NOTHING)

        def product(x_NI: torch.Tensor) -> torch.Tensor:
            return torch.ops.mkldnn._linear_pointwise(x_NI, packed, cast_bias, *fused)

        return then_activate(product, activation) if activation and fused is NOTHING else product

    return make


def quantised_product(weight: torch.Tensor, bias: torch.Tensor | None, activation: str = "") -> Product:
    """A product of 8-bit integers: fp32 in, fp32 out.

    Weights are rounded once, symmetrically, with a scale for each output: w = scale_O * q, -127 <= q <= 127.
    Activations are rounded when they come, with one scale and zero point for the whole batch, from its smallest and
    largest number: x = scale * (q - zero_point), 0 <= q <= 255. A scale for each token would be closer to fp32 (mean
    cosine 0.999 instead of 0.993, no better on STS), but oneDNN takes only one, and undoing the tokens' own scales
    afterwards costs half of the speed. An embedding so depends a little on the sentences computed with it.

    Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", 2017 (https://arxiv.org/abs/1712.05877).
    """
    weight = weight.detach().float()
    scale_O = weight.abs().amax(dim=1).clamp(min=SMALLEST) / 127
    packed = torch.ops.onednn.qlinear_prepack((weight / scale_O[:, None]).round().to(torch.int8), None)
    zero_point_O = torch.zeros(len(weight), dtype=torch.int64)
    bias = None if bias is None else bias.detach().float()
    fused = FUSED.get(activation, NOTHING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantise(torch.zeros(1, 1), 1.0, 0)  # its first call in a process warns that it is to go: have it said here

    def product(x_NI: torch.Tensor) -> torch.Tensor:
        low, high = (float(value) for value in torch.aminmax(x_NI))
        low, high = min(low, 0.0), max(high, 0.0)
        scale = max((high - low) / 255, SMALLEST)
        zero_point = round(-low / scale)
        q_NI = quantise(x_NI, scale, zero_point)
        return torch.ops.onednn.qlinear_pointwise(
            q_NI, scale, zero_point, packed, scale_O, zero_point_O, bias, 1.0, 0, torch.float32, *fused
        )

    return then_activate(product, activation) if activation and fused is NOTHING else product


def quantise(x_NI: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    """Round x / scale + zero_point to uint8, ties to even.

    `torch.quantize_per_tensor` does it in one pass, four times as fast as arithmetic and a cast, which makes int8
    encoding a sixth faster. Its result is read as plain bytes, without a copy. torch plans to drop it; then the
    arithmetic remains.
    """
    if not hasattr(torch, "quantize_per_tensor"):
        return (x_NI / scale + zero_point).round_().clamp_(0, 255).to(torch.uint8)
    q_NI = torch.quantize_per_tensor(x_NI, scale, zero_point, torch.quint8)
    return torch.empty(0, dtype=torch.uint8).set_(q_NI.untyped_storage(), 0, q_NI.shape, q_NI.stride())
