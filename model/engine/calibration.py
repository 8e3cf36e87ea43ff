"""Calibration: measure on text the range of every product's inputs, by which int8 then rounds."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from shortstack.model.engine.encoder import Engine, EngineLayer
from shortstack.model.engine.int8 import Calibration, Range
from shortstack.model.engine.products import Product, linears_of
from shortstack.model.network import PackedForward
from shortstack.model.tokens import PackedTokens

TEXT = Path(__file__).parent / "calibration.txt"  # one sentence a line; part of every calibration
PRODUCTS = ("qkv", "attention_output", "intermediate", "output")


class WatchedProduct(Product):
    """A product in fp32 that records the range of its inputs."""

    inputs: Range | None = None

    def __call__(self, x_NI: torch.Tensor, residual_NO: torch.Tensor | None = None) -> torch.Tensor:
        low, high = x_NI.aminmax(dim=0)
        seen = self.inputs or Range(low, high)
        self.inputs = Range(torch.minimum(seen.low, low), torch.maximum(seen.high, high))
        return super().__call__(x_NI, residual_NO)


@torch.no_grad()
def calibrate(bert: PackedForward, batches: Iterable[PackedTokens]) -> Calibration:
    """Measure the range of every product's inputs on a few hundred sentences like those to encode."""
    watched: dict[str, WatchedProduct] = {}
    layers = []
    for number, layer in enumerate(bert.layers()):
        products: dict[str, Any] = {
            name: WatchedProduct(linear, torch.float32) for name, linear in linears_of(layer).items()
        }
        watched |= {f"{number}.{name}": product for name, product in products.items()}
        layers.append(EngineLayer.of(layer, products, torch.float32))
    engine = Engine(bert, layers, torch.float32, is_int8=False)
    for tokens in batches:
        engine(tokens)
    return {name: Range(*(end.cpu() for end in product.inputs)) for name, product in watched.items() if product.inputs}


def tensors_of(calibration: Calibration) -> dict[str, torch.Tensor]:
    """A calibration as tensors by name, to keep in a file."""
    return {f"{name}.{end}": tensor for name, ends in calibration.items() for end, tensor in ends._asdict().items()}


def calibration_of(tensors: dict[str, torch.Tensor], layers: int) -> Calibration:
    """The calibration that `tensors_of` turned into tensors, of so many layers; KeyError if one is missing."""
    names = [f"{number}.{name}" for number in range(layers) for name in PRODUCTS]
    return {name: Range(tensors[f"{name}.low"], tensors[f"{name}.high"]) for name in names}
