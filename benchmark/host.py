"""What the host does for each batch, whatever the GPU: Python, torch's dispatch, packing, tokenising.

The device's work is stubbed out. The model has the layers of the one asked about and 8 dimensions, and sees a few
tokens, so that every operation costs what starting it costs; attention takes the way of the variable-length kernel,
which returns at once. Starting an operation on a CPU stands for launching a kernel on a GPU, which costs about as much
(an estimate). Token arrays have their real size.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn
from transformers import BertConfig

from shortstack.benchmark.random_models import random_embedder, shape_config
from shortstack.benchmark.timing import TrainStep, encoder_flops, training_step
from shortstack.distillation.data.labels import LabelledSentences
from shortstack.distillation.training.rows import BatchRows
from shortstack.model import Embedder, PackedTokens, attention
from shortstack.model.embedder import tokens_that_suit
from shortstack.model.products import prepare
from shortstack.model.tokens import Tokenized

PEAKS = {"H100": 989e12, "A100": 312e12}  # dense bf16 operations a second, by NVIDIA's data sheets
TOKENS = 25  # of a sentence
BLOCKS, TURNS = 10, 10  # the best block of turns counts: the others were disturbed
WANTED = 0.6  # share of a GPU's peak that tokenising should keep up with
GPU = torch.device("cuda")
FEW = 8  # sentences where only starting the operations counts


def host_times(
    shape: str,
    layers: tuple[int, int],
    batch_sizes: list[int],
    train_step: TrainStep,
    tokenizer: Embedder | None = None,
    texts: Sequence[str] = (),
) -> dict[str, Any]:
    """Host milliseconds of an encode batch and of training steps, and the share of each GPU's peak that they allow.

    Args:
        shape: of teacher and student; see `shape_config`.
        layers: of teacher and student.
        batch_sizes: sentences of a training step.
        train_step: train.py's.
        tokenizer: whose tokenising of `texts` is timed; None for nobody's.
        texts: sentences.
    """
    config = shape_config(shape)
    rows = []
    with one_thread(), without_kernels():
        count = tokens_that_suit(GPU, config.hidden_size) // TOKENS
        rows.append(row("label", config, layers[0], count, encode_ms(layers[0], count), 1))
        step_ms = training_ms(layers[1], train_step)
        for count in batch_sizes:
            rows.append(row("train", config, layers[1], count, step_ms + taking_ms(count, config.vocab_size), 3))
    result: dict[str, Any] = {"shape": shape, "tokens of a sentence": TOKENS, "rows": rows}
    if tokenizer is not None:
        sized = BertConfig.from_dict(config.to_dict() | {"num_hidden_layers": layers[0]})
        flops = encoder_flops(sized, np.full(1, TOKENS), first_token_only=True) / TOKENS
        result["tokenising"] = tokenising(tokenizer, texts, flops)
    return result


def row(what: str, config: BertConfig, layers: int, count: int, host_ms: float, passes: int) -> dict[str, Any]:
    """One line: host time beside the device's, where a forward pass counts once and a backward pass twice."""
    sized = BertConfig.from_dict(config.to_dict() | {"num_hidden_layers": layers})
    flops = passes * encoder_flops(sized, np.full(count, TOKENS), first_token_only=True)
    found: dict[str, Any] = {"what": what, "layers": layers, "sentences": count, "host_ms": host_ms}
    for name, peak in PEAKS.items():
        found[name] = {"ms_at_half_peak": flops / peak * 2000, "share_allowed": min(1.0, flops / peak * 1000 / host_ms)}
    return found


def tokenising(embedder: Embedder, texts: Sequence[str], flops: float) -> dict[str, Any]:
    """How fast sentences become tokens, and how many cores a GPU wants for it.

    Labelling tokenises in a thread of its own, and on all cores, while the GPU computes. Training never tokenises: the
    tokens are kept with the labels.

    Args:
        embedder: whose tokenizer.
        texts: sentences.
        flops: of labelling, for each token.
    """
    tokens = len(embedder.tokenize(texts).ids)
    rates = {}
    for name, parallel in (("one core", "false"), ("all cores", "true")):
        with patch.dict(os.environ, TOKENIZERS_PARALLELISM=parallel):
            rates[name] = tokens / best_ms(lambda: embedder.tokenize(texts), turns=1) * 1000
    found: dict[str, Any] = {"cores": os.cpu_count(), "tokens a second": rates}
    for name, peak in PEAKS.items():
        found[name] = {
            "cores_for_60%": WANTED * peak / flops / rates["one core"],
            "share_allowed": min(1.0, rates["all cores"] * flops / peak),
        }
    return found


def encode_ms(layers: int, count: int) -> float:
    """Milliseconds to start an encode batch: packed at its real size, computed on a few tokens."""
    embedder = random_embedder(small(layers), layers, "cpu", "fp32")
    embedder.prepared = prepare(embedder.bert.network(), "bf16", GPU)
    few, real = equal_sentences(FEW, 3), equal_sentences(count, TOKENS)
    indices = np.arange(count)
    return best_ms(lambda: embedder.embed(few)) + best_ms(lambda: PackedTokens.pack(real.take(indices)))


def training_ms(layers: int, train_step: TrainStep) -> float:
    """Milliseconds to start a step on a few tokens."""
    student = random_embedder(small(layers), layers, "cpu", "fp32")
    step = training_step(student, FEW, "bf16", train_step)
    batch = LabelledSentences(equal_sentences(FEW, 3), torch.zeros(FEW, student.dimensions, dtype=torch.float16))
    return best_ms(lambda: step(batch))


def taking_ms(count: int, words: int) -> float:
    """Milliseconds to find a batch's word rows and to pack it, at its real size."""
    table, tokens = nn.Parameter(torch.zeros(words, 1), requires_grad=False), equal_sentences(count, TOKENS)
    return best_ms(lambda: BatchRows(table, tokens).pack(tokens))


def small(layers: int) -> BertConfig:
    """A BERT whose every operation is over as soon as it is started."""
    return BertConfig(
        num_hidden_layers=layers, hidden_size=8, intermediate_size=8, num_attention_heads=1, vocab_size=999
    )


def equal_sentences(count: int, tokens: int) -> Tokenized:
    """Random token numbers."""
    ids = np.random.default_rng(0).integers(4, 999, size=count * tokens)
    return Tokenized(ids.astype(np.int32), np.full(count, tokens))


def best_ms(work: Callable[[], Any], turns: int | None = None) -> float:
    """Milliseconds of one call in the best block of calls, TURNS of them or this many."""
    turns = turns or TURNS
    work()
    found = []
    for _ in range(BLOCKS):
        start = time.perf_counter()
        for _ in range(turns):
            work()
        found.append((time.perf_counter() - start) / turns * 1000)
    return min(found)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: a GPU's host starts operations from one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def without_kernels() -> Iterator[None]:
    """Let attention take the variable-length kernel's way, and the kernel do nothing."""
    nothing = torch.empty(0)

    def forward(q: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, ...]:
        return torch.zeros_like(q), torch.zeros(q.shape[1], len(q)), nothing, nothing, nothing

    def backward(_: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *__: Any, **___: Any) -> Any:
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)

    with (
        patch.object(torch.ops.aten, "_flash_attention_forward", forward),
        patch.object(torch.ops.aten, "_flash_attention_backward", backward),
        patch.object(attention, "has_varlen_kernel", lambda qkv: True),
    ):
        yield


def print_host(result: dict[str, Any]) -> None:
    """The rows as text."""
    print(f"{result['shape']}, sentences of {TOKENS} tokens; the device's work is stubbed out")
    heads = [f"{name}: ms at 50%   host allows" for name in PEAKS]
    print(f"{'':<6} {'layers':>6} {'sentences':>9} {'host ms':>8} {heads[0]:>32} {heads[1]:>32}")
    for each in result["rows"]:
        shares = [f"{each[name]['ms_at_half_peak']:.2f} {each[name]['share_allowed']:>12.0%}" for name in PEAKS]
        print(
            f"{each['what']:<6} {each['layers']:>6} {each['sentences']:>9} {each['host_ms']:>8.2f} "
            f"{shares[0]:>32} {shares[1]:>32}"
        )
    if "tokenising" in result:
        found = result["tokenising"]
        one, every = (rate / 1e6 for rate in found["tokens a second"].values())
        print(f"tokenising: {one:.2f} M tokens/s on one core, {every:.2f} M on {found['cores']}")
        for name in PEAKS:
            wanted, allowed = found[name]["cores_for_60%"], found[name]["share_allowed"]
            print(
                f"  {name}: {WANTED:.0%} of its peak takes {wanted:.1f} cores of tokenising; these allow {allowed:.0%}"
            )
