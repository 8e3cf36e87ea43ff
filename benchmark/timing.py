"""What measuring speed takes: clocks, systems timed in turn, memory, operation counts, and the machine's own limit."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from transformers import PretrainedConfig

from shortstack.distillation.data.labels import LabelledSentences
from shortstack.distillation.host import in_a_process_of_its_own
from shortstack.distillation.ranks import Ranks
from shortstack.distillation.recipe import Recipe
from shortstack.distillation.training.flat_optimizer import optimizer_for
from shortstack.distillation.training.graph import step_for
from shortstack.model import Embedder
from shortstack.model.bert import ARCHITECTURES
from shortstack.model.engine import gelu
from shortstack.model.engine.int8 import ByteProduct, Rounding, to_bytes
from shortstack.model.engine.products import Linear, Product, product_for
from shortstack.model.precision import dtype_of

INSTRUCTIONS = ("avx2", "avx512_f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")  # those that decide the rate


class Encoder(Protocol):
    """What is timed: an Embedder, or another tool's model."""

    def encode(self, sentences: Any, /, *, prompt: str, batch_size: int) -> Any: ...


# -- time ------------------------------------------------------------------------------------------------------------


def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds that a piece of work takes, on the GPU's own clock where there is one."""
    if device.type != "cuda":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    begin.record(torch.cuda.current_stream(device))  # without it, on the current device
    work()
    end.record(torch.cuda.current_stream(device))
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1000


def in_turn(works: Sequence[Callable[[], Any]], turns: int, device: torch.device) -> list[list[float]]:
    """Do every work once to warm up, then all of them in turn: the seconds of its turns, for each work."""
    for work in works:
        work()
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(turns):
        for work, times in zip(works, seconds, strict=True):
            times.append(seconds_of(work, device))
    return seconds


# -- memory ----------------------------------------------------------------------------------------------------------


def peak_memory_mib(work: Callable[[], Any], device: torch.device) -> float | None:
    """The memory, in MiB, that a piece of work takes at its peak.

    On a GPU, of this process's tensors, those there before left out. On a CPU, the resident memory of a process of its
    own, imported libraries included, for which the work must be picklable; None where the system does not tell.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    with in_a_process_of_its_own() as process:
        return process.submit(resident_after, work).result()


def resident_after(work: Callable[[], Any]) -> float | None:
    """Do the work; then this process's peak of resident memory so far, in MiB."""
    work()
    status = Path("/proc/self/status")
    return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024 if status.exists() else None


# -- operations ------------------------------------------------------------------------------------------------------


def inner_size(config: PretrainedConfig) -> int:
    """Units between the two products of a layer's MLP."""
    return getattr(config, ARCHITECTURES[config.model_type].inner_size)


def encoder_flops(config: PretrainedConfig, lengths: np.ndarray, first_token_only: bool = False) -> float:
    """Floating-point operations that the encoder's layers compute for sentences of these lengths, without padding.

    A layer's products cost 2 operations a weight and token, its attention 4 D a pair of tokens. Where only first tokens
    are wanted (cls pooling), our last layer computes queries, keys and values for all tokens, and the rest only for the
    first: that is counted as it is computed. Embeddings, norms and activations are left out.
    """
    D, inner, layers = config.hidden_size, inner_size(config), config.num_hidden_layers
    tokens, pairs = float(lengths.sum()), float((lengths.astype(float) ** 2).sum())
    qkv, rest = 2 * 3 * D * D, 2 * (D * D + 2 * D * inner)
    whole = tokens * (qkv + rest) + 4 * D * pairs
    if not first_token_only or layers == 0:
        return layers * whole
    return (layers - 1) * whole + tokens * (qkv + 4 * D) + len(lengths) * rest


@dataclass
class Products:
    """Matrix products to time, and how many operations they are."""

    precision: str
    flops: float
    work: Callable[[], Any]


def products_of(config: PretrainedConfig, precision: str, device: torch.device) -> list[Products]:
    """Matrix products of a model's shapes, computed as encoding computes them: the limit of what it can reach."""
    D, inner = config.hidden_size, inner_size(config)
    products = []
    for tokens in (1024, 4096) if device.type == "cpu" else (8192, 32_768):  # fewer are too short for a GPU
        for inputs, outputs in ((D, inner), (inner, D)):
            linear = Linear(torch.randn(outputs, inputs, device=device), torch.zeros(outputs, device=device))
            x_NI = torch.randn(tokens, inputs, device=device, dtype=dtype_of(precision))
            if precision == "int8":
                product: Product = ByteProduct(linear, Rounding(torch.ones(inputs), 0.02, 128), torch.bfloat16)
                x_NI = to_bytes(x_NI, 0.02, 128)  # after a product, which keeps torch from warning here
            else:
                product = product_for(linear, precision, device)
            flops = 2 * tokens * inputs * outputs
            calls = max(1, int((2e12 if device.type == "cuda" else 2e10) / flops))  # enough for the clock
            products.append(Products(precision, calls * flops, partial(repeat, product, x_NI, calls)))
    return products


@torch.inference_mode()
def repeat(product: Callable[[torch.Tensor], torch.Tensor], x_NI: torch.Tensor, calls: int) -> None:
    """Compute a product some times."""
    for _ in range(calls):
        product(x_NI)


def gelu_milliseconds() -> list[dict[str, Any]]:
    """For each MLP that a Hopper GPU has encoded with: its first product with GELU in one pass and in two."""
    return [
        {"type": str(dtype)[6:], "inputs": inputs, "outputs": outputs, "one_pass": min(tiled), "two_passes": plain}
        for (_, dtype, outputs, inputs), times in gelu.TIMES.items()
        for *tiled, plain in [times.values()]
    ]


def describe_device(device: torch.device) -> dict[str, Any]:
    """What was measured on."""
    if device.type == "cuda":
        return {"type": "cuda", "name": torch.cuda.get_device_name(device), "torch": torch.__version__}
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    capabilities = torch.cpu.get_capabilities()
    return {
        "type": "cpu",
        "name": names[0] if names else "CPU",
        "cores": torch.get_num_threads() if not names else len(names),
        "threads": torch.get_num_threads(),
        "instructions": [name for name in INSTRUCTIONS if capabilities.get(name)],
        "torch": torch.__version__,
    }


# -- training --------------------------------------------------------------------------------------------------------

Step = Callable[[LabelledSentences], torch.Tensor]


def training_step(student: Embedder, batch_size: int, precision: str, dropout: float = 0.0) -> Step:
    """A student made ready to train as train.py does it: gives the step to call with a batch."""
    recipe = Recipe(batch_size=batch_size, precision=precision, learning_rate=1e-5, dropout=dropout)
    ranks = Ranks(0, 1, student.device)
    student.train().bert.dropout = dropout
    optimizer = optimizer_for(student, recipe, ranks)
    return step_for(student, optimizer, recipe, ranks)
