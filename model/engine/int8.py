"""int8 products for encoding on a CPU: bytes in, bytes out, with scales fixed once by calibration on text.

An activation x becomes q = x / smoothing / scale + zero_point, 0 <= q <= 255. Scale and zero point follow from the
inputs of each product on a few hundred sentences (calibration.py). Nothing is measured while encoding, so an
embedding does not depend on the sentences beside it. A weight becomes -127 <= q <= 127, with a scale for each output.

Shapes: N tokens, I inputs of a product, O its outputs, D hidden dimensions.

Sources: Jacob et al., 2017 (https://arxiv.org/abs/1712.05877): integer products. Xiao et al., "SmoothQuant", 2022
(https://arxiv.org/abs/2211.10438): smoothing. Zhao et al., 2019 (https://arxiv.org/abs/1901.09504): splitting channels.
"""

import warnings
from typing import NamedTuple

import torch
import torch.nn.functional as F
from transformers.activations import ACT2FN

from shortstack.model.engine.products import FUSED, Linear, Product, limit_kernel_caches

SMOOTHING = 0.75  # SmoothQuant's alpha: how much of an input's size moves into its weights
SPLIT = 48  # one more channel for every 48 between the two products of the MLP
SMALLEST = 1e-6  # the range of inputs that are all 0
# GELU by its tanh formula is far closer to the exact one than a byte can tell, and several times as fast.
FUSED_WITH_BYTES = FUSED | {"gelu": ("gelu", [], "tanh")}


class Range(NamedTuple):
    """The smallest and the largest value of each input of a product."""

    low: torch.Tensor  # (I,)
    high: torch.Tensor  # (I,)


Calibration = dict[str, Range]  # by layer and product: "0.qkv", "0.attention_output", ..., "5.output"


class Rounding(NamedTuple):
    """How a product's inputs become bytes."""

    smoothing: torch.Tensor  # (I,): each input is divided by it, its weights are multiplied by it
    scale: float
    zero_point: int


def quantise(linears: dict[str, Linear], ranges: dict[str, Range], dtype: torch.dtype) -> dict[str, Product]:
    """Lay out a layer's products as bytes, by the ranges of their inputs. The sums and norms between them stay in fp32.

    `dtype` is the type of queries, keys and values: bf16 if the CPU has it, else fp32.
    """
    linears, ranges = dict(linears), dict(ranges)
    fused = linears["intermediate"].activation in FUSED
    if fused:
        linears["intermediate"], linears["output"], ranges["output"] = split_large(
            linears["intermediate"], linears["output"], ranges["output"]
        )
    roundings = {
        name: rounding_of(ranges[name], linear.weight, 0.0 if name == "output" else SMOOTHING)
        for name, linear in linears.items()
    }
    # attention is linear in the values, so their weights are divided by what its output should be divided by
    qkv, divisor = linears["qkv"], roundings["attention_output"].smoothing
    divisor = torch.cat([torch.ones_like(divisor).repeat(2), divisor])
    linears["qkv"] = Linear(qkv.weight / divisor[:, None], None if qkv.bias is None else qkv.bias / divisor)
    gives: dict[str, torch.dtype | Rounding] = {"qkv": dtype}
    if fused:
        gives["intermediate"] = roundings["output"]
    return {
        name: ByteProduct(linear, roundings[name], gives.get(name, torch.float32), smooth=name != "attention_output")
        for name, linear in linears.items()
    }


def rounding_of(inputs: Range, weight_OI: torch.Tensor, exponent: float) -> Rounding:
    """The rounding that just covers a range, its inputs divided so that their ranges become more equal.

    `exponent` says how much of an input's size moves into its weights; 0 for none.
    """
    smoothing = torch.ones_like(inputs.low)
    if exponent:
        largest_I = torch.maximum(-inputs.low, inputs.high).clamp(min=SMALLEST)
        smoothing = largest_I**exponent / weight_OI.abs().amax(dim=0).clamp(min=SMALLEST) ** (1 - exponent)
        smoothing /= smoothing.mean()
    low = min(0.0, float((inputs.low / smoothing).min()))
    high = max(SMALLEST, float((inputs.high / smoothing).max()))
    scale = (high - low) / 255
    return Rounding(smoothing, scale, round(-low / scale))


def split_large(intermediate: Linear, output: Linear, between: Range) -> tuple[Linear, Linear, Range]:
    """Split the largest channels into several, so that all channels need a smaller range.

    A few of the MLP's channels reach ten times what the others do, and would make the steps of all ten times as coarse.
    With a limit c, a byte keeps min(x, c) of x = GELU(y). A copy of the channel computes GELU(y - c), nearly the rest,
    and meets the same weights in the output product; further copies carry what is above 2c, and so on. The activation
    must leave large numbers as they are.

    Returns:
        The two products with more channels between them, and the range of these channels.
    """
    room = len(between.high) // SPLIT
    limit = float(between.high.max().clamp(min=SMALLEST))
    for part in torch.linspace(1, 0.05, 200).tolist():
        copies = (between.high / (limit * part)).ceil().clamp(min=1) - 1
        if copies.sum() > room:
            break
        smallest, counts = limit * part, copies.long()
    channels = torch.arange(len(counts)).repeat_interleave(counts)
    offsets = torch.tensor([smallest * (k + 1) for n in counts.tolist() for k in range(n)])
    more = room - len(channels)  # zeros: kernels are fastest with round numbers of channels
    bias = intermediate.bias if intermediate.bias is not None else torch.zeros(len(intermediate.weight))
    weight = torch.cat([intermediate.weight, F.pad(intermediate.weight[channels], (0, 0, 0, more))])
    bias = torch.cat([bias, F.pad(bias[channels] - offsets, (0, more))])
    columns = torch.cat([output.weight, F.pad(output.weight[:, channels], (0, more))], dim=1)
    span = Range(between.low.min().expand(len(bias)), torch.full((len(bias),), smallest))
    return Linear(weight, bias, intermediate.activation), Linear(columns, output.bias), span


class ByteProduct(Product):
    """A product of bytes, with its bias and activation."""

    def __init__(
        self, linear: Linear, rounding: Rounding, gives: torch.dtype | Rounding = torch.float32, smooth: bool = True
    ) -> None:
        """
        Args:
            linear: its weights in fp32.
            rounding: of its input, where that does not come as bytes already.
            gives: the type of its output, or the rounding of the bytes that it gives.
            smooth: whether the input must still be divided by the smoothing.
        """
        limit_kernel_caches()
        weight_OI = linear.weight * rounding.smoothing
        scale_O = weight_OI.abs().amax(dim=1).clamp(min=SMALLEST) / 127
        packed = torch.ops.onednn.qlinear_prepack((weight_OI / scale_O[:, None]).round().to(torch.int8), None)
        self.scale, self.zero_point, self.bias = rounding.scale, rounding.zero_point, linear.bias
        self.weights = packed, scale_O, torch.zeros(len(scale_O), dtype=torch.int64)
        self.factor = 1 / rounding.smoothing if smooth and bool((rounding.smoothing != 1).any()) else None
        self.given = (gives.scale, gives.zero_point, torch.uint8) if isinstance(gives, Rounding) else (1.0, 0, gives)
        self.fused = FUSED_WITH_BYTES.get(linear.activation, FUSED[""])
        self.activate = None if linear.activation in FUSED else ACT2FN[linear.activation]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns once that it will drop the function that `to_bytes` calls
            to_bytes(torch.zeros(1, 1), 1.0, 0)

    def __call__(self, x_NI: torch.Tensor, residual_NO: torch.Tensor | None = None) -> torch.Tensor:
        if x_NI.dtype != torch.uint8:
            x_NI = x_NI.float()
            x_NI = to_bytes(x_NI if self.factor is None else x_NI * self.factor, self.scale, self.zero_point)
        inputs = x_NI, self.scale, self.zero_point, *self.weights
        multiply = torch.ops.onednn.qlinear_pointwise
        if residual_NO is not None:
            return multiply.binary(*inputs, residual_NO, self.bias, *self.given, 1.0, 0, "add", 1.0, *self.fused)
        product_NO = multiply.default(*inputs, self.bias, *self.given, *self.fused)
        return product_NO if self.activate is None else self.activate(product_NO)


def to_bytes(x_NI: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    """Round x / scale + zero_point to uint8, ties to even.

    `torch.quantize_per_tensor` does it in one pass, four times as fast as arithmetic and a cast. Its result is read as
    plain bytes, without a copy. torch plans to drop it; without it, plain arithmetic is used.
    """
    if not hasattr(torch, "quantize_per_tensor"):
        return (x_NI / scale + zero_point).round_().clamp_(0, 255).to(torch.uint8)
    q_NI = torch.quantize_per_tensor(x_NI, scale, zero_point, torch.quint8)
    return torch.empty(0, dtype=torch.uint8).set_(q_NI.untyped_storage(), 0, q_NI.shape, q_NI.stride())
