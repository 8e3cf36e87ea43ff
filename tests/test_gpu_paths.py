"""What only a GPU runs, made to run without one.

Attention: torch's own `varlen_attn` over CPU references of its two kernels, which hold its callers to what the kernels
require. Waiting: a step and an encode batch on the "meta" device, whose tensors have shapes and no numbers, so that
whatever would have to wait for a GPU's numbers raises.
"""

import contextlib
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import make_bert_dir, make_family_dir
from torch.utils._python_dispatch import TorchDispatchMode

from shortstack import train
from shortstack.benchmark import timing
from shortstack.distillation.data.labels import LabelledSentences
from shortstack.distillation.ranks import Ranks
from shortstack.distillation.recipe import Recipe
from shortstack.distillation.training.flat import FlatAdamW
from shortstack.distillation.training.flat_optimizer import FlatOptimizer
from shortstack.distillation.training.meter import Meter
from shortstack.distillation.training.optimizer import StudentOptimizer, encoding_precision, training_precision
from shortstack.model import Embedder, PackedTokens, attention, kernels
from shortstack.model.engine import products
from shortstack.model.pooling import Pooling
from shortstack.model.precision import resolve_precision
from shortstack.model.tokens import Tokenized

LENGTHS = [1, 2, 2, 3, 7, 7, 30, 64]
META = torch.device("meta")


def sentences(lengths: list[int], seed: int = 0) -> Tokenized:
    generator = np.random.default_rng(seed)
    return Tokenized.of([generator.integers(5, 200, size=length).astype(np.int32) for length in lengths])


# -- attention -------------------------------------------------------------------------------------------------------


class FlashOnCpu:
    """torch's two flash kernels in plain fp32, with the checks that their C++ callers make."""

    def __init__(self) -> None:
        self.forwards, self.backwards = 0, 0

    def check(self, *arguments: Any) -> None:
        q, k, v, cu_q, cu_k, longest_q, longest_k = arguments
        assert q.dtype == k.dtype == v.dtype and q.dtype in (torch.float16, torch.bfloat16)
        assert q.shape[-1] % 8 == 0 and q.shape[-1] <= 256 and q.shape[1:] == k.shape[1:] == v.shape[1:]
        assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
        for cu_seqlens, rows, longest in ((cu_q, q, longest_q), (cu_k, k, longest_k)):
            assert cu_seqlens.dtype == torch.int32 and cu_seqlens.is_contiguous() and cu_seqlens.device == q.device
            assert cu_seqlens[0] == 0 and cu_seqlens[-1] == len(rows)
            assert type(longest) is int and longest == int(cu_seqlens.diff().max())

    def pieces(self, q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any) -> Iterator[tuple[torch.Tensor, ...]]:
        """Queries, keys, values and attention weights of each sentence, in fp32."""
        for row in range(len(cu_q) - 1):
            queries, keys = slice(cu_q[row], cu_q[row + 1]), slice(cu_k[row], cu_k[row + 1])
            one_q, one_k, one_v = q[queries].float(), k[keys].float(), v[keys].float()
            scores = torch.einsum("qhe,khe->hqk", one_q, one_k) / math.sqrt(q.shape[-1])
            yield one_q, one_k, one_v, scores.softmax(-1)

    def forward(
        self, q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, longest_q: int, longest_k: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, ...]:
        self.check(q, k, v, cu_q, cu_k, longest_q, longest_k)
        self.forwards += 1
        attended = [torch.einsum("hqk,khe->qhe", weights, v_) for _, _, v_, weights in self.pieces(q, k, v, cu_q, cu_k)]
        nothing = torch.empty(0)
        return torch.cat(attended).to(q.dtype), torch.zeros(q.shape[1], len(q)), nothing, nothing, nothing

    def backward(
        self, gradient: Any, q: Any, k: Any, v: Any, out: Any, _lse: Any, cu_q: Any, cu_k: Any, *rest: Any, **__: Any
    ) -> tuple[torch.Tensor, ...]:
        self.check(q, k, v, cu_q, cu_k, *rest[:2])
        assert gradient.dtype == q.dtype and gradient.shape == out.shape
        self.backwards += 1
        parts: list[list[torch.Tensor]] = [[], [], []]
        for (q_, k_, v_, weights), g in zip(
            self.pieces(q, k, v, cu_q, cu_k), gradient.float().split(cu_q.diff().tolist()), strict=True
        ):
            of_weights = torch.einsum("qhe,khe->hqk", g, v_)
            of_scores = weights * (of_weights - (of_weights * weights).sum(-1, keepdim=True)) / math.sqrt(q.shape[-1])
            parts[0].append(torch.einsum("hqk,khe->qhe", of_scores, k_))
            parts[1].append(torch.einsum("hqk,qhe->khe", of_scores, q_))
            parts[2].append(torch.einsum("hqk,qhe->khe", weights, g))
        return tuple(torch.cat(each).to(q.dtype) for each in parts)


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> FlashOnCpu:
    kernels = FlashOnCpu()
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", kernels.forward)
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_backward", kernels.backward)
    monkeypatch.setattr(attention, "has_varlen_kernel", lambda qkv: qkv.dtype != torch.float32)
    return kernels


@pytest.mark.parametrize("first_only", [False, True])
def test_the_variable_length_kernel_gives_the_values_and_gradients_of_attention_by_length(
    tiny_cls_dir: Path, flash: FlashOnCpu, monkeypatch: pytest.MonkeyPatch, first_only: bool
) -> None:
    bert = Embedder.load(tiny_cls_dir, device="cpu", precision="fp32").bert.train()

    def outcome() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        bert.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            tokens = PackedTokens.pack(sentences(LENGTHS))
            out = bert.forward_packed(tokens, Pooling.CLS if first_only else None).float()
        generator = torch.Generator().manual_seed(0)
        (out * torch.randn(out.shape, generator=generator)).sum().backward()
        return out.detach(), {name: p.grad.clone() for name, p in bert.named_parameters() if p.grad is not None}

    found, gradients = outcome()
    assert (flash.forwards, flash.backwards) == (8, 8)
    monkeypatch.setattr(attention, "has_varlen_kernel", lambda qkv: False)
    wanted, wanted_gradients = outcome()
    assert float((found - wanted).norm() / wanted.norm()) < 0.02
    assert gradients.keys() == wanted_gradients.keys()
    whole = torch.cat([each.flatten() for each in wanted_gradients.values()]).norm()
    difference = torch.cat([(gradients[name] - each).flatten() for name, each in wanted_gradients.items()]).norm()
    assert float(difference / whole) < 0.03


def test_encoding_by_the_variable_length_kernel(
    tiny_cls_dir: Path, flash: FlashOnCpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = Embedder.load(tiny_cls_dir, device="cpu", precision="fp32")
    wanted = embedder.embed(sentences(LENGTHS))
    monkeypatch.setattr(products, "repacking_pays", lambda precision: False)  # as on a GPU
    found = embedder.use_precision("bf16").embed(sentences(LENGTHS))
    assert flash.forwards == 8
    assert float(torch.cosine_similarity(found, wanted).min()) > 0.999


@pytest.mark.parametrize(
    ("head_size", "dtype", "flash", "takes"),
    [
        (64, torch.float16, True, True),
        (256, torch.bfloat16, True, True),
        (26, torch.float16, True, False),  # TinyBERT's
        (264, torch.float16, True, False),
        (64, torch.float32, True, False),
        (64, torch.float16, False, False),  # a GPU before Ampere, or a torch built without
    ],
)
def test_the_kernel_is_taken_only_where_it_runs(
    monkeypatch: pytest.MonkeyPatch, head_size: int, dtype: torch.dtype, flash: bool, takes: bool
) -> None:
    monkeypatch.setattr(attention, "gpu_has_flash", lambda device: flash)
    on_gpu = SimpleNamespace(shape=(9, 3, 2, head_size), dtype=dtype, is_cuda=True, device=torch.device("cuda", 0))
    assert attention.has_varlen_kernel(on_gpu) is takes  # type: ignore[arg-type]
    assert not attention.has_varlen_kernel(torch.zeros(9, 3, 2, 64, dtype=torch.float16))


def test_flash_attention_wants_ampere_and_a_torch_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for built, capability, wanted in ((True, (8, 0), True), (True, (7, 5), False), (False, (9, 0), False)):
        attention.gpu_has_flash.cache_clear()
        monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda built=built: built)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert attention.gpu_has_flash(torch.device("cuda", 0)) is wanted
    attention.gpu_has_flash.cache_clear()


# -- waiting for the device ------------------------------------------------------------------------------------------


class Transfers(TorchDispatchMode):
    """Notes every operator that makes the host wait for the device that "meta" stands for.

    A copy to it counts unless it starts from pinned memory and does not block. An operator that is given tensors of
    both counts too: torch then copies one across on its own. A read of the device's numbers raises by itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.copies = 0
        self.blocking: list[str] = []

    def __torch_dispatch__(self, operator: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        options = options or {}
        flat = [each for one in arguments for each in (one if isinstance(one, list | tuple) else [one])]
        tensors = [each for each in flat if isinstance(each, torch.Tensor)]
        kinds = {each.device.type for each in tensors if each.dim() or each.device.type == "meta"}
        result = operator(*arguments, **options)
        if isinstance(result, torch.Tensor) and result.device.type == "meta" and "cpu" in kinds:
            self.copies += 1
            pinned = getattr(tensors[0], "stands_for_pinned", False)
            if kinds != {"cpu"} or not pinned or not options.get("non_blocking"):
                self.blocking.append(str(operator))
        return result


@pytest.fixture
def transfers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], contextlib.AbstractContextManager[Transfers]]]:
    """Everything that asks what "meta" can do is told what a GPU can."""

    def pin_memory(tensor: torch.Tensor) -> torch.Tensor:
        tensor.stands_for_pinned = True  # type: ignore[attr-defined]
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    optimizer_module = sys.modules[torch.optim.Optimizer.__module__]
    monkeypatch.setattr(optimizer_module, "_get_fused_kernels_supported_devices", lambda: ["meta"])
    monkeypatch.setattr(attention, "has_varlen_kernel", lambda qkv: True)
    yield Transfers


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("loss", ["mse", "cosine"])
@pytest.mark.parametrize("kind", [StudentOptimizer, FlatOptimizer])
def test_a_training_step_does_not_wait(
    tiny_cls_dir: Path,
    transfers: Any,
    monkeypatch: pytest.MonkeyPatch,
    dropout: float,
    loss: str,
    kind: type[StudentOptimizer],
) -> None:
    """Neither does the meter, until it is read."""
    monkeypatch.setattr(FlatAdamW, "_step", FlatAdamW._step_by_kernel)
    monkeypatch.setattr(kernels, "adamw", lambda *_: None)
    student = Embedder.load(tiny_cls_dir, device="cpu", precision="fp32").train().to(META)
    student.bert.dropout = dropout
    recipe = Recipe(batch_size=8, gradient_accumulation=1 + (kind is StudentOptimizer), precision="bf16", loss=loss)
    ranks = Ranks(0, 1, META)
    optimizer, meter = kind(student, recipe, ranks), Meter(ranks)
    batch = LabelledSentences(sentences(LENGTHS), torch.zeros(8, 48, dtype=torch.float16))
    with transfers() as seen:
        for _ in range(2):  # the first makes the optimizer's state
            meter.count(batch, train.train_step(student, optimizer, batch, recipe, ranks))
    assert seen.copies > 0 and not seen.blocking
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        meter.read()


@pytest.mark.parametrize("kind", ["bert", "roberta", "mpnet", "distilbert"])
def test_an_encode_batch_does_not_wait(tmp_path: Path, transfers: Any, kind: str) -> None:
    """In mean pooling, and with MPNet's bias."""
    embedder = Embedder.load(make_family_dir(tmp_path / kind, kind), device="cpu", precision="fp32").to(META)
    embedder.use_precision("bf16")
    embedder.tokens_per_batch = 64
    with transfers() as seen:
        embeddings = embedder.embed(sentences(LENGTHS))
    assert embeddings.shape == (8, 32)
    assert seen.copies > 0 and not seen.blocking


def test_what_would_wait_is_noticed(transfers: Any) -> None:
    """The two tests above can fail: each of these would make the host wait for a GPU."""
    on_device, indices = torch.zeros(4, device=META), np.array([1, 2])
    with transfers() as seen:
        torch.ones(3).to(META)
        torch.ones(3).to(META, non_blocking=True)  # from memory that is not pinned
        on_device[indices]
    assert len(seen.blocking) == 3
    for read in (float, torch.Tensor.tolist, torch.Tensor.nonzero, torch.Tensor.cpu, lambda each: bool(each)):
        with pytest.raises((RuntimeError, NotImplementedError)):
            read(on_device[0])


# -- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")]
)
def test_a_batch_that_does_not_fit_is_halved(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    """Until it fits; the batches after it are no larger."""
    embedder = Embedder.load(tiny_model_dir, device="cpu", precision="fp32")
    wanted = embedder.embed(sentences([9] * 20))
    real, sizes = embedder.forward, []

    def forward(tokens: PackedTokens) -> torch.Tensor:
        sizes.append(len(tokens.input_ids))
        if sizes[-1] > 45:
            raise error
        return real(tokens)

    monkeypatch.setattr(embedder, "forward", forward)
    torch.testing.assert_close(embedder.embed(sentences([9] * 20)), wanted, atol=1e-5, rtol=1e-5)
    assert sizes == [180, 90, 45, 45, 45, 45]
    monkeypatch.setattr(embedder, "forward", lambda tokens: (_ for _ in ()).throw(error))
    with pytest.raises(type(error)):  # not even one sentence fits
        embedder.embed(sentences([9] * 20))


# -- devices ---------------------------------------------------------------------------------------------------------


def test_events_and_memory_are_those_of_the_device_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of the current one, which may be another."""
    second = torch.device("cuda", 1)
    streams, asked = [], []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: str) -> None:
            streams.append(stream)

        def elapsed_time(self, end: "Event") -> float:
            return 250.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch.cuda, "synchronize", asked.append)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", asked.append)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: asked.append(device) or 2**20)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: asked.append(device) or 2**21)
    assert timing.seconds_of(lambda: None, second) == 0.25
    assert streams == ["stream of cuda:1"] * 2
    assert timing.peak_memory_mib(lambda: None, second) == 1.0
    assert asked == [second] * 5


def test_no_buffer_is_sent(tiny_model_dir: Path) -> None:
    """DistributedDataParallel would send a module's buffers in every forward pass."""
    import torch.distributed as dist

    student = Embedder.load(tiny_model_dir, device="cpu", precision="fp32").train()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert not train.in_parallel(student).will_sync_module_buffers()
    finally:
        dist.destroy_process_group()


def test_auto_precision_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoding takes fp16. Training takes bf16 where there is any, and a run then labels and evaluates in fp16."""
    gpu = torch.device("cuda", 0)
    for has_bf16, precision in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has_bf16: has)
        assert resolve_precision("auto", gpu) == "fp16"
        assert training_precision("auto", gpu) == precision
        assert encoding_precision(precision, gpu) == "fp16"
    assert encoding_precision("fp32", gpu) == "fp32" and encoding_precision("bf16", torch.device("cpu")) == "bf16"


@pytest.mark.parametrize("lengths", [LENGTHS, [9]], ids=["many", "one"])
def test_beyond_fp16_embeddings_are_computed_in_fp32(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, lengths: list[int]
) -> None:
    """Also what is embedded later; and without a check, what overflowed is never a number that could be believed."""
    embedder = Embedder.load(tiny_model_dir, device="cpu", precision="fp32")
    with torch.no_grad():
        for layer in embedder.bert.encoder.layer:
            layer.intermediate.dense.weight.mul_(3000)
            layer.output.dense.weight.mul_(3000)
    wanted = embedder.embed(sentences(lengths))
    monkeypatch.setattr("shortstack.model.embedder.resolve_precision", lambda precision, device: precision)
    monkeypatch.setattr(products, "repacking_pays", lambda precision: False)  # as on a GPU
    embedder.use_precision("fp16")
    assert not embedder.embed(sentences(lengths)).isfinite().any()
    monkeypatch.undo()
    with pytest.warns(UserWarning, match="beyond fp16's range"):
        found = embedder.embed(sentences(lengths), check=True)
    assert torch.equal(found, wanted) and embedder.precision == "fp32"
    assert np.isfinite(embedder.encode(["a b c"])).all()


@pytest.mark.parametrize("to_tensor", [False, True])
def test_encode_works_ahead_for_a_gpu(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, to_tensor: bool) -> None:
    """The next part is tokenised before this one is computed, and computed before this one is handed over."""
    embedder = Embedder.load(tiny_model_dir, device="cpu", precision="fp32")
    texts = [f"{word} b c d"[: 3 + number % 5] for number, word in enumerate("abcdefg" * 3)]
    wanted, events = embedder.encode(texts), []
    monkeypatch.setattr("shortstack.model.encoding.overlaps", lambda device: True)
    monkeypatch.setattr("shortstack.model.encoding.GPU_CHUNK", 5)
    for name in ("tokenize", "embed"):
        real = getattr(embedder, name)

        def noted(*given, name=name, real=real, **options):  # type: ignore[no-untyped-def]
            events.append(name)
            return real(*given, **options)

        monkeypatch.setattr(embedder, name, noted)
    np.testing.assert_allclose(np.asarray(embedder.encode(texts, convert_to_tensor=to_tensor)), wanted, atol=1e-6)
    assert events.count("tokenize") == events.count("embed") == 5
    assert embedder.encode([]).shape == (0, 32) and embedder.encode(texts[0]).shape == (32,)


def test_encode_finds_every_part_beyond_fp16(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the one that was started before the first was looked at; one warning tells of all."""
    embedder = Embedder.load(tiny_model_dir, device="cpu", precision="fp32")
    texts = [f"{word} b c d"[: 3 + number % 5] for number, word in enumerate("abcdefg" * 3)]
    wanted, real = embedder.encode(texts), embedder.embed
    monkeypatch.setattr("shortstack.model.encoding.overlaps", lambda device: True)
    monkeypatch.setattr("shortstack.model.encoding.GPU_CHUNK", 5)
    embedder.precision = "fp16"  # by name: the numbers are made to overflow here
    monkeypatch.setattr(embedder, "embed", lambda *given: real(*given) / (0.0 if embedder.precision == "fp16" else 1.0))
    with pytest.warns(UserWarning, match="beyond fp16's range") as caught:
        found = embedder.encode(texts)
    assert len(caught) == 1 and embedder.precision == "fp32"
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_a_dense_layer_is_computed_in_fp32_in_training_too(tmp_path: Path) -> None:
    """As when the labels were made: in bf16 the student could not come nearer to them than bf16 rounds."""
    dense = (16, "torch.nn.modules.activation.Tanh")
    embedder = Embedder.load(make_bert_dir(tmp_path / "dense", layers=1, dense=dense), "cpu", "fp32")
    pooled = torch.randn(5, 32)
    with torch.autocast("cpu", torch.bfloat16):
        found = embedder.finish(pooled)
    assert found.dtype == torch.float32 and torch.equal(found, embedder.finish(pooled))
