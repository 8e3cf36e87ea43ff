"""int8 encoding on a CPU: a network whose products take and give bytes, with scales that text fixes once.

An activation x becomes q = x / smoothing / scale + zero_point, 0 <= q <= 255. Scale and zero point follow from what the
inputs of each product are on some hundred sentences (`calibrate`). Nothing is measured while encoding, so an embedding
does not depend on the sentences beside it. A weight becomes -127 <= q <= 127, with a scale for each output.

Shapes: N tokens, I inputs of a product, O its outputs, D hidden dimensions.

Sources: Jacob et al., 2017 (https://arxiv.org/abs/1712.05877): integer products. Xiao et al., "SmoothQuant", 2022
(https://arxiv.org/abs/2211.10438): smoothing. Zhao et al., 2019 (https://arxiv.org/abs/1901.09504): splitting channels.
"""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from transformers.activations import ACT2FN

from shortstack.model.bert import Layer, Linear, Network, Part, run_layer
from shortstack.model.tokens import PackedTokens

TEXT = Path(__file__).parent / "calibration.txt"  # a sentence a line, part of every calibration
SMOOTHING = 0.75  # SmoothQuant's alpha: how much of an input's size moves into its weights
SPLIT = 48  # one channel more for each 48 between the two products of the MLP
SMALLEST = 1e-6  # a range for what is all 0
# What oneDNN computes on a product's output in the same pass. GELU by its tanh formula is far closer to the exact one
# than a byte can tell, and several times as fast.
FUSED: dict[str, tuple[str, list[None], str]] = {
    "": ("none", [], ""),
    "gelu": ("gelu", [], "tanh"),
    "relu": ("relu", [], ""),
}
PRODUCTS = [name for name in Layer._fields if not name.endswith("norm")]


class Range(NamedTuple):
    """The smallest and the largest value of each input of a product."""

    low: torch.Tensor  # (I,)
    high: torch.Tensor  # (I,)


Calibration = dict[str, Range]  # by layer and product: "0.qkv", "0.attention_output", ..., "5.output"


# -- calibration -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def calibrate(network: Network, batches: Iterable[PackedTokens]) -> Calibration:
    """Find the range of every product's inputs.

    Args:
        network: a DistilledBert's own, in fp32.
        batches: the tokens of a few hundred sentences like those to encode.
    """
    found: Calibration = {}
    for tokens in batches:
        hidden = network.embed(tokens)
        for number, layer in enumerate(network.layers):
            watched = {name: watch(getattr(layer, name), found, f"{number}.{name}") for name in PRODUCTS}
            hidden = run_layer(layer._replace(**watched), hidden, network.bias(tokens), tokens, tokens, network)
    return {name: Range(low.cpu(), high.cpu()) for name, (low, high) in found.items()}


def watch(part: Part, found: Calibration, name: str) -> Part:
    """The same part, which widens its range by the inputs that it gets."""

    def watched(x_NI: torch.Tensor, *residual: Any) -> torch.Tensor:
        low, high = x_NI.float().aminmax(dim=0)
        seen = found.get(name, Range(low, high))
        found[name] = Range(torch.minimum(seen.low, low), torch.maximum(seen.high, high))
        return part(x_NI, *residual)

    return watched


def tensors_of(calibration: Calibration) -> dict[str, torch.Tensor]:
    """A calibration as tensors by name, to keep in a file."""
    parts = {name: inputs._asdict() for name, inputs in calibration.items()}
    return {f"{name}.{end}": tensor for name, ends in parts.items() for end, tensor in ends.items()}


def calibration_of(tensors: dict[str, torch.Tensor], layers: int) -> Calibration:
    """What `tensors_of` made tensors of.

    Raises:
        KeyError: a layer's part is missing.
    """
    names = [f"{number}.{name}" for number in range(layers) for name in PRODUCTS]
    return {name: Range(tensors[f"{name}.low"], tensors[f"{name}.high"]) for name in names}


# -- layout ----------------------------------------------------------------------------------------------------------


class Rounding(NamedTuple):
    """How a product's inputs become bytes."""

    smoothing: torch.Tensor  # (I,): what each is divided by, and its weights are multiplied by
    scale: float
    zero_point: int


@torch.no_grad()
def quantise(network: Network, calibration: Calibration, dtype: torch.dtype) -> Network:
    """Lay out a network's weights as bytes. The sums and norms between products stay in fp32.

    Args:
        network: a DistilledBert's own.
        calibration: the ranges of its products' inputs.
        dtype: of queries, keys and values: bf16 where the CPU has it, else fp32.
    """
    layers = []
    for number, layer in enumerate(network.layers):
        ranges = {name: calibration[f"{number}.{name}"] for name in PRODUCTS}
        linears = {name: getattr(layer, name).detached_as(torch.float32) for name in PRODUCTS}
        fused = linears["intermediate"].activation in FUSED
        if fused:
            linears["intermediate"], linears["output"], ranges["output"] = split_large(
                linears["intermediate"], linears["output"], ranges["output"]
            )
        roundings = {
            name: rounding_of(ranges[name], linears[name].weight, 0.0 if name == "output" else SMOOTHING)
            for name in PRODUCTS
        }
        # attention is linear in the values: what its output is to be divided by, their weights are divided by
        qkv, divisor = linears["qkv"], roundings["attention_output"].smoothing
        divisor = torch.cat([torch.ones_like(divisor).repeat(2), divisor])
        linears["qkv"] = Linear(qkv.weight / divisor[:, None], None if qkv.bias is None else qkv.bias / divisor)
        gives: dict[str, torch.dtype | Rounding] = {"qkv": dtype}
        if fused:
            gives["intermediate"] = roundings["output"]
        products = {
            name: quantised_product(
                linears[name], roundings[name], gives.get(name, torch.float32), smooth=name != "attention_output"
            )
            for name in PRODUCTS
        }
        layers.append(layer._replace(**products))
    return network._replace(layers=layers, alike=True)


def rounding_of(inputs: Range, weight_OI: torch.Tensor, exponent: float) -> Rounding:
    """The rounding that just covers a range, its inputs divided so that they become more alike.

    Args:
        inputs: the range.
        weight_OI: the product's weights.
        exponent: how much of an input's size moves into its weights; 0 for nothing.
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
    """Let several channels carry what is too large for one, so that all of them need a smaller range.

    A few of the MLP's channels reach ten times what the others do, and would make everyone's steps ten times as coarse.
    With a limit c, a byte keeps min(x, c) of x = GELU(y). A copy of the channel computes GELU(y - c), nearly the rest,
    and meets the same weights in the output product; further copies carry what is above 2c, and so on.

    Args:
        intermediate, output: the two products, with an activation that leaves large numbers as they are.
        between: the range of the channels between them.

    Returns:
        The products with more channels, and the range of these.
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
    more = room - len(channels)  # filled up, for kernels that like round numbers
    bias = intermediate.bias if intermediate.bias is not None else torch.zeros(len(intermediate.weight))
    weight = torch.cat([intermediate.weight, F.pad(intermediate.weight[channels], (0, 0, 0, more))])
    bias = torch.cat([bias, F.pad(bias[channels] - offsets, (0, more))])
    columns = torch.cat([output.weight, F.pad(output.weight[:, channels], (0, more))], dim=1)
    span = Range(between.low.min().expand(len(bias)), torch.full((len(bias),), smallest))
    return Linear(weight, bias, intermediate.activation), Linear(columns, output.bias), span


def quantised_product(
    linear: Linear, rounding: Rounding, gives: torch.dtype | Rounding = torch.float32, smooth: bool = True
) -> Part:
    """A product of bytes, with its bias and activation.

    Args:
        linear: its weights in fp32.
        rounding: of its input, unless that comes as bytes.
        gives: the type of its output, or the rounding of the bytes that it gives.
        smooth: whether its input has yet to be divided by the smoothing.
    """
    weight_OI = linear.weight * rounding.smoothing
    scale_O = weight_OI.abs().amax(dim=1).clamp(min=SMALLEST) / 127
    packed = torch.ops.onednn.qlinear_prepack((weight_OI / scale_O[:, None]).round().to(torch.int8), None)
    bias, zero_point_O = linear.bias, torch.zeros(len(scale_O), dtype=torch.int64)
    scale, zero_point = rounding.scale, rounding.zero_point
    factor = 1 / rounding.smoothing if smooth and bool((rounding.smoothing != 1).any()) else None
    given = (gives.scale, gives.zero_point, torch.uint8) if isinstance(gives, Rounding) else (1.0, 0, gives)
    fused = FUSED.get(linear.activation, FUSED[""])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        to_bytes(torch.zeros(1, 1), 1.0, 0)  # its first call in a process warns that it is to go: have it said here

    multiply = torch.ops.onednn.qlinear_pointwise

    def product(x_NI: torch.Tensor, residual_NO: torch.Tensor | None = None, dropout: float = 0) -> torch.Tensor:
        if x_NI.dtype != torch.uint8:
            x_NI = x_NI.float()
            x_NI = to_bytes(x_NI if factor is None else x_NI * factor, scale, zero_point)
        weights = x_NI, scale, zero_point, packed, scale_O, zero_point_O
        if residual_NO is not None:
            return multiply.binary(*weights, residual_NO, bias, *given, 1.0, 0, "add", 1.0, *fused)
        return multiply.default(*weights, bias, *given, *fused)

    return then_activate(product, linear.activation)


def then_activate(product: Part, activation: str) -> Part:
    """A product followed by its activation, where oneDNN does not compute both in one pass."""
    return product if activation in FUSED else lambda x_NI: ACT2FN[activation](product(x_NI))


def to_bytes(x_NI: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    """Round x / scale + zero_point to uint8, ties to even.

    `torch.quantize_per_tensor` does it in one pass, four times as fast as arithmetic and a cast. Its result is read as
    plain bytes, without a copy. torch plans to drop it; then the arithmetic remains.
    """
    if not hasattr(torch, "quantize_per_tensor"):
        return (x_NI / scale + zero_point).round_().clamp_(0, 255).to(torch.uint8)
    q_NI = torch.quantize_per_tensor(x_NI, scale, zero_point, torch.quint8)
    return torch.empty(0, dtype=torch.uint8).set_(q_NI.untyped_storage(), 0, q_NI.shape, q_NI.stride())
