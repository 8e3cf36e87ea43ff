"""A GPU gives what the CPU gives, within what each precision allows; it does not wait; it is timed by its own clock."""

import contextlib
import functools
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hooks
import numpy as np
import pytest
import torch
from devices import device_named
from processes import RunDirectory, train, write_recipe
from tiny import make_family_dir

from shortstack.benchmark import timing
from shortstack.benchmark.random_models import random_embedder
from shortstack.benchmark.timing import encoder_flops, products_of, seconds_of, training_step
from shortstack.distillation.command_line import run_command
from shortstack.distillation.data.labels import LabelledSentences
from shortstack.distillation.ranks import Ranks
from shortstack.distillation.recipe import Recipe
from shortstack.distillation.training.flat_optimizer import FlatOptimizer, LossScale, optimizer_for
from shortstack.distillation.training.graph import GraphedStep
from shortstack.distillation.training.step import train_step
from shortstack.model import Embedder
from shortstack.model.attention import attention
from shortstack.model.engine import gelu
from shortstack.model.tokens import PackedTokens, Tokenized

Record = Callable[..., None]
STEPS = 12
# Largest relative difference of a step's loss from the CPU's in fp32: what rounding to the type does, three times over.
LOSS_TOLERANCE = {"fp32": 1e-4, "fp16": 0.01, "bf16": 0.06}
LEAST_COSINE = {"fp32": 0.999999, "fp16": 0.9999, "bf16": 0.999}


def sentences(count: int, longest: int = 20, seed: int = 0) -> Tokenized:
    """Random token numbers, shortest first."""
    generator = np.random.default_rng(seed)
    lengths = np.sort(generator.integers(3, longest + 1, size=count))
    return Tokenized(generator.integers(5, 100, size=lengths.sum()).astype(np.int32), lengths)


# -- training --------------------------------------------------------------------------------------------------------


def losses_on(
    device: torch.device, teacher_dir: Path, precision: str, dropout: float = 0.0, accumulation: int = 1
) -> list[float]:
    teacher = Embedder.load(teacher_dir, device="cpu", precision="fp32")
    tokens = sentences(32)
    batch = LabelledSentences(tokens, teacher.embed(tokens))
    layers = [0, 2, 5] if teacher.bert.config.num_hidden_layers > 5 else [0, 2]  # fewer than the teacher has
    student = teacher.keep_layers(layers).to(device).train()
    student.bert.dropout = dropout
    recipe = Recipe(batch_size=32, precision=precision, learning_rate=1e-3, gradient_accumulation=accumulation)
    ranks = Ranks(0, 1, device)
    optimizer = optimizer_for(student, recipe, ranks)
    if precision == "fp16":  # from 2**16 the first steps may be left out, which other precisions take
        flat = isinstance(optimizer, FlatOptimizer)
        optimizer.scaler = LossScale(device, scale=2.0**8) if flat else torch.amp.GradScaler(device.type, 2.0**8)
    torch.manual_seed(0)
    return [float(train_step(student, optimizer, batch, recipe, ranks)) for _ in range(STEPS)]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_training_takes_the_cpus_steps(
    device: torch.device, record: Record, tiny_model_dir: Path, tiny_cls_dir: Path, precision: str, pooling: str,
    accumulation: int,
) -> None:  # fmt: skip
    teacher = tiny_cls_dir if pooling == "cls" else tiny_model_dir
    wanted = losses_on(torch.device("cpu"), teacher, "fp32")
    found = losses_on(device, teacher, precision, accumulation=accumulation)
    worst = max(abs(one - other) / other for one, other in zip(found, wanted, strict=True))
    record("relative difference of losses", worst, LOSS_TOLERANCE[precision])
    assert wanted[-1] < 0.8 * wanted[0] and worst < LOSS_TOLERANCE[precision]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["roberta", "mpnet", "distilbert"])
def test_other_families_take_the_cpus_steps(
    device: torch.device, record: Record, tmp_path: Path, kind: str, precision: str
) -> None:
    """MPNet's bias takes another attention kernel, with a gradient of its own."""
    teacher = make_family_dir(tmp_path / kind, kind)
    wanted = losses_on(torch.device("cpu"), teacher, "fp32")
    found = losses_on(device, teacher, precision)
    worst = max(abs(one - other) / other for one, other in zip(found, wanted, strict=True))
    record("relative difference of losses", worst, LOSS_TOLERANCE[precision])
    assert worst < LOSS_TOLERANCE[precision]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_with_dropout(device: torch.device, record: Record, tiny_model_dir: Path, precision: str) -> None:
    """A GPU draws other numbers than a CPU, so only the means can be compared."""
    wanted = float(np.mean(losses_on(torch.device("cpu"), tiny_model_dir, "fp32", dropout=0.1)))
    found = losses_on(device, tiny_model_dir, precision, dropout=0.1)
    record("mean loss by the CPU's", float(np.mean(found)) / wanted, "0.7..1.3")
    assert 0.7 < float(np.mean(found)) / wanted < 1.3 and found[-1] < found[0]


def test_fp16_backs_off_from_a_scale_that_overflows(device: torch.device, record: Record, tiny_model_dir: Path) -> None:
    student = Embedder.load(tiny_model_dir, device, "fp32").train()
    recipe, ranks = Recipe(batch_size=8, precision="fp16", learning_rate=1e-3), Ranks(0, 1, device)
    optimizer = FlatOptimizer(student, recipe, ranks)
    optimizer.scaler = LossScale(device, scale=2.0**40)
    batch = LabelledSentences(sentences(8), torch.ones(8, 32))
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    losses = [float(train_step(student, optimizer, batch, recipe, ranks)) for _ in range(40)]
    skipped = int(optimizer.skips[0])
    record("steps left out", skipped, "1..39")
    assert 0 < skipped < 40 and int(optimizer.skips[1]) == 0
    assert float(optimizer.scaler.scale) == 2.0 ** (40 - skipped)
    assert losses[0] == losses[skipped] and losses[-1] < losses[0]  # no step was taken before the scale fitted
    assert all(tensor.isfinite().all() for tensor in student.state_dict().values())
    assert any(not torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


@pytest.mark.parametrize(
    "name", [pytest.param("cpu", marks=pytest.mark.long), pytest.param("cuda", marks=pytest.mark.gpu)]
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_stopped_run_goes_on(tmp_path: Path, record: Record, tiny_model_dir: Path, name: str, precision: str) -> None:
    device_named(name)
    recipe = write_recipe(tmp_path, tiny_model_dir, epochs=3, device=name, precision=precision, log_every=1)
    assert train(recipe, "--name", "whole").status == 0
    stop = functools.partial(hooks.signal_at_step, signal.SIGTERM, 13)
    assert train(recipe, "--name", "stopped", before=stop).status == 1
    assert train(recipe, "--name", "stopped", "--resume").status == 0
    whole, stopped = (RunDirectory(tmp_path / "runs" / each).logged("loss") for each in ("whole", "stopped"))
    worst = max(abs(stopped[step] - loss) / loss for step, loss in whole.items())
    record("relative difference of losses", worst, LOSS_TOLERANCE[precision])
    record("bit for bit", whole == stopped)
    assert whole.keys() == stopped.keys() and worst < LOSS_TOLERANCE[precision]


# -- encoding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head_size", [26, 32, 64])  # 26 is TinyBERT's, which the variable-length kernel does not take
@pytest.mark.parametrize("first_only", [False, True])
def test_attention_of_1_to_512_tokens(
    device: torch.device, record: Record, dtype: torch.dtype, head_size: int, first_only: bool
) -> None:
    """Against attention by length, on the CPU in fp32."""
    lengths = [1, 1, 2, 3, 7, 31, 64, 64, 129, 511, 512]
    host = Tokenized(np.zeros(sum(lengths), dtype=np.int32), np.array(lengths))
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(sum(lengths), 3, 2, head_size, generator=generator).to(dtype).float()

    def outcome(where: torch.device, kind: torch.dtype) -> list[torch.Tensor]:
        tokens = PackedTokens.pack(host, where)
        qkv = exact.to(where, kind).requires_grad_()
        out = attention(qkv, tokens, first_only)
        weights = torch.arange(out.numel(), device=where).remainder(7).view(out.shape) - 3
        (out.float() * weights).sum().backward()
        assert qkv.grad is not None
        return [out.detach().float().cpu(), qkv.grad.float().cpu()]

    for name, found, wanted in zip(
        ("values", "gradients"), outcome(device, dtype), outcome(torch.device("cpu"), torch.float32), strict=True
    ):
        difference = float((found - wanted).norm() / wanted.norm())
        record(f"relative difference of {name}", difference, 0.02)
        assert difference < 0.02


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_encoding(device: torch.device, record: Record, tiny_cls_dir: Path, precision: str) -> None:
    if device.type == "cpu" and precision == "fp16":
        pytest.skip("fp16 is for GPUs")
    tokens = sentences(300)
    wanted = Embedder.load(tiny_cls_dir, "cpu", "fp32").embed(tokens)
    embedder = Embedder.load(tiny_cls_dir, device, precision)
    embedder.tokens_per_batch = 2000
    least = float(torch.cosine_similarity(embedder.embed(tokens).cpu(), wanted).min())
    record("least cosine", least, LEAST_COSINE[precision])
    assert least > LEAST_COSINE[precision]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dimensions", [384, 768, 1024])
def test_gelu_within_its_product(gpu: torch.device, record: Record, dtype: torch.dtype, dimensions: int) -> None:
    """The forms that a Hopper GPU chooses from; on another GPU there is the plain one only."""
    shapes = (20_000, dimensions), (4 * dimensions, dimensions), (4 * dimensions,)
    half = [torch.randn(shape, device=gpu).to(dtype) for shape in shapes]
    half[1] /= dimensions**0.5
    wanted, found = gelu.plain(*(tensor.float() for tensor in half)), gelu.linear_gelu(*half)
    forms = gelu.TIMES.get((gpu, dtype, *shapes[1]), {})
    for tiling, milliseconds in forms.items():
        record(f"{tuple(tiling)}, ms" if tiling else "two passes, ms", milliseconds)
    outcomes = [found, *(gelu.tiled(*half, tiling) for tiling in forms if tiling)]
    worst = max(float((outcome - wanted).norm() / wanted.norm()) for outcome in outcomes)
    record("relative difference", worst, 0.005)
    assert worst < 0.005 and len(forms) == (1 + len(gelu.TILINGS) if gelu.is_hopper(gpu) else 0)


# -- waiting, memory, time -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """On a GPU, an error at whatever makes the host wait for it."""
    if device.type == "cpu":
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_neither_step_nor_batch_waits(device: torch.device, tiny_cls_dir: Path, dropout: float, precision: str) -> None:
    student = Embedder.load(tiny_cls_dir, device, "fp32").train()
    student.bert.dropout = dropout
    recipe, ranks = Recipe(batch_size=32, precision=precision), Ranks(0, 1, device)
    optimizer = optimizer_for(student, recipe, ranks)
    batch = LabelledSentences(sentences(32), torch.zeros(32, 48, dtype=torch.float16))
    for number in range(3):
        with no_waiting(device) if number else contextlib.nullcontext():  # the first step makes the optimizer's state
            train_step(student, optimizer, batch, recipe, ranks)
    student.eval().use_precision("fp32" if device.type == "cpu" else precision)
    with no_waiting(device):
        student.embed(batch.tokens)


def test_out_of_memory_halves_the_batch(gpu: torch.device, record: Record) -> None:
    embedder = random_embedder("bert-base", 2, gpu, "bf16")
    tokens = sentences(20_000, longest=100)
    wanted = embedder.embed(tokens).cpu()
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info(gpu)
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(gpu) + 2**31) / total, gpu)
    embedder.tokens_per_batch = 2**20  # whose 6 GB of intermediate vectors do not fit into 2
    try:
        found = embedder.embed(tokens).cpu()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, gpu)
    record("tokens that fitted", embedder.tokens_per_batch, "< 1048576")
    assert embedder.tokens_per_batch < 2**20
    assert float(torch.cosine_similarity(found, wanted).min()) > 0.999


def test_out_of_memory_is_one_line(gpu: torch.device, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_command(lambda: torch.empty(2**50, dtype=torch.uint8, device=gpu))
    assert capsys.readouterr().err.startswith("error: out of memory: train: raise")


def test_a_run_out_of_memory_ends_with_one_line(gpu: torch.device, tmp_path: Path, tiny_model_dir: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_model_dir, device="cuda")
    ended = train(recipe, before=functools.partial(torch.cuda.set_per_process_memory_fraction, 1e-6))
    assert ended.status == 1 and ended.error.startswith("error: out of memory: train: raise")


def test_the_clock_sees_the_devices_work(device: torch.device, record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that sleeps for a number of the GPU's ticks: four times the ticks take four times as long."""
    host = SimpleNamespace(now=0.0, perf_counter=lambda: host.now)  # a CPU that others use, too, has no exact one

    def sleep(units: int) -> None:
        if device.type == "cuda":
            torch.cuda._sleep(units * 20_000_000)  # some 10 ms, of which the host sees nothing
        else:
            host.now += units * 0.02

    monkeypatch.setattr(timing, "time", host)

    seconds_of(lambda: sleep(1), device)
    one, four = (seconds_of(lambda units=units: sleep(units), device) for units in (1, 4))  # type: ignore[misc]
    record("seconds of 4 units by 1", four / one, "3.5..4.5")
    assert 3.5 < four / one < 4.5 and one > 0.002


# -- share of peak: printed, not judged ------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [64, 512, 32_768])
def test_share_of_peak(device: torch.device, record: Record, tokens: int) -> None:
    large = device.type == "cuda"
    shape, layers, tokens = ("bert-large", (24, 8), tokens) if large else ("bert-tiny", (2, 1), min(tokens, 512))
    precision = "bf16" if not large or torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    teacher, student = (random_embedder(shape, number, device, precision) for number in layers)
    count = max(2, tokens // 25)
    batch = Tokenized(np.full(count * 25, 7, dtype=np.int32), np.full(count, 25))
    teacher.tokens_per_batch = len(batch.ids)
    products = products_of(teacher.bert.config, precision, device)
    peak = max(each.flops / seconds_of(each.work, device) for each in products for _ in range(2))

    def share(work: Callable[[], Any], flops: float) -> float:
        for _ in range(3):
            work()
        turns = 10
        return turns * flops / seconds_of(lambda: [work() for _ in range(turns)], device) / peak

    labelling = share(lambda: teacher.embed(batch), encoder_flops(teacher.bert.config, batch.lengths, True))
    step = training_step(student, count, precision)
    labelled = LabelledSentences(batch, torch.zeros(count, student.dimensions, dtype=torch.float16))
    flops = 3 * encoder_flops(student.bert.config, batch.lengths, True)
    training = share(lambda: step(labelled), flops)
    record(f"labelling, {len(batch.ids)} tokens", labelling)
    record(f"training, {len(batch.ids)} tokens", training)
    assert labelling > 0 and training > 0


# -- steps as CUDA graphs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "dropout"), [("bf16", 0.0), ("fp16", 0.0), ("fp16", 0.1)])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_recorded_steps_are_train_steps(
    gpu: torch.device, record: Record, tiny_model_dir: Path, tiny_cls_dir: Path, precision: str, dropout: float,
    pooling: str,
) -> None:  # fmt: skip
    """With steps left out at first in fp16, an evaluation in between, and batches of several buckets."""
    recipe = Recipe(batch_size=32, precision=precision, learning_rate=1e-3, dropout=dropout)
    ranks, outcomes = Ranks(0, 1, gpu), []
    batches = [sentences(32, longest, seed) for seed, longest in enumerate([20, 20, 20, 60, 60, 60, 20, 100, 100, 100])]
    for records in (False, True):
        student = Embedder.load(tiny_cls_dir if pooling == "cls" else tiny_model_dir, gpu, "fp32").train()
        student.bert.dropout = dropout
        optimizer = FlatOptimizer(student, recipe, ranks)
        if precision == "fp16":
            optimizer.scaler = LossScale(gpu, scale=2.0**20)
        graphed, losses = GraphedStep(student, optimizer, recipe, ranks), []
        for number, tokens in enumerate(batches * 3):
            optimizer.learning_rate = 1e-3 * (number + 1) / 30
            torch.manual_seed(number)
            batch = LabelledSentences(tokens, torch.zeros(32, student.dimensions, dtype=torch.float16))
            loss = graphed(batch) if records else train_step(student, optimizer, batch, recipe, ranks)
            losses.append(float(loss))
            if number % 7 == 3:
                student.eval().use_precision("fp16").embed(tokens)
                student.train()
        assert len(graphed.graphs) == (3 if records else 0) or len(graphed.graphs) > 3
        outcomes.append((losses, int(optimizer.skips[0])))
    (wanted, skipped), (found, skipped_too) = outcomes
    worst = max(abs(one - other) / other for one, other in zip(found, wanted, strict=True))
    allowed = 0.5 if dropout else LOSS_TOLERANCE[precision]  # other numbers are dropped
    record("relative difference of losses", worst, allowed)
    assert worst < allowed and skipped == skipped_too
