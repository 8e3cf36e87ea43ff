"""A step over a batch that is filled up to a bucket is the step of the batch alone; when steps are recorded at all."""

import functools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shortstack.distillation.data.labels import LabelledSentences
from shortstack.distillation.ranks import Ranks
from shortstack.distillation.recipe import Recipe
from shortstack.distillation.training import graph
from shortstack.distillation.training.flat_optimizer import FlatOptimizer, LossScale
from shortstack.distillation.training.graph import Bucket, GraphedStep, fill_up, why_not_graphed
from shortstack.distillation.training.optimizer import StudentOptimizer
from shortstack.distillation.training.rows import distinct_tokens
from shortstack.distillation.training.step import train_step
from shortstack.model import Embedder
from shortstack.model.kernels import TILE
from shortstack.model.tokens import Tokenized

CPU = Ranks(0, 1, torch.device("cpu"))


def batch_of(lengths: list[int], dimensions: int = 32, seed: int = 0) -> LabelledSentences:
    generator = np.random.default_rng(seed)
    ids = generator.integers(5, 120, size=sum(lengths)).astype(np.int32)
    labels = torch.randn(len(lengths), dimensions, generator=torch.Generator().manual_seed(seed))
    return LabelledSentences(Tokenized(ids, np.array(lengths)), labels.half())


@given(lengths=st.lists(st.integers(1, 512), min_size=1, max_size=80).map(sorted), share=st.floats(0.01, 1))
def test_a_bucket_holds_its_batch_and_little_more(lengths: list[int], share: float) -> None:
    tokens = sum(lengths)
    bucket = Bucket.for_batch(np.array(lengths), max(1, int(share * tokens)))
    assert bucket.padding <= bucket.tokens - tokens <= bucket.padding * TILE  # each sentence of padding fits a tile
    assert bucket.tokens <= tokens + bucket.padding + max(128, tokens / 8)
    assert lengths[-1] <= bucket.longest and share * tokens < bucket.rows


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30).map(sorted), seed=st.integers(0, 99))
def test_a_filled_up_batch_is_the_batch_and_padding(lengths: list[int], seed: int) -> None:
    batch = batch_of(lengths, seed=seed)
    distinct, index_of = distinct_tokens(batch.tokens, 130)
    bucket = Bucket.for_batch(batch.lengths, len(distinct))
    arrays = fill_up(batch, bucket, distinct, index_of)
    n, count = sum(lengths), int(arrays["count"][0])
    assert (arrays["ids"][arrays["inverse"]][:n] == batch.tokens.ids).all()
    assert not np.isin(arrays["ids"][count:], batch.tokens.ids).any() and (arrays["inverse"][n:] == count).all()
    found = np.diff(arrays["starts"])
    assert found[: len(lengths)].tolist() == lengths and found.min() >= 1 and found[len(lengths) :].max() <= TILE
    assert arrays["starts"][-1] == bucket.tokens == len(arrays["positions"])
    assert set(arrays["tiles"].tolist()) <= set(arrays["starts"].tolist())
    assert (np.diff(arrays["tiles"]) <= TILE).all() and arrays["tiles"][-1] == bucket.tokens


def test_batches_of_a_kind_share_few_buckets() -> None:
    generator, buckets = np.random.default_rng(0), set()
    for _ in range(500):
        lengths = np.sort(generator.geometric(1 / 10, size=64) + 2)
        buckets.add(Bucket.for_batch(lengths, int(0.6 * lengths.sum())))
    assert len(buckets) < 20


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_filled_up_steps_are_train_steps(tiny_model_dir: Path, tiny_cls_dir: Path, pooling: str) -> None:
    """Losses, weights and moments, with weight decay and clipping; a smaller last batch takes an ordinary step."""
    path = tiny_model_dir if pooling == "mean" else tiny_cls_dir
    recipe = Recipe(batch_size=6, precision="fp32", learning_rate=1e-3, weight_decay=0.1, max_grad_norm=0.1)
    outcomes = []
    for filled in (False, True):
        student = Embedder.load(path, "cpu", "fp32").train()
        optimizer = (FlatOptimizer if filled else StudentOptimizer)(student, recipe, CPU)
        losses = []
        step: Callable[..., torch.Tensor] = functools.partial(train_step, student, optimizer, recipe=recipe, ranks=CPU)
        if isinstance(optimizer, FlatOptimizer):
            step = GraphedStep(student, optimizer, recipe, CPU)
        for seed, lengths in enumerate([[3, 4, 4, 9, 20, 33], [2, 2, 5, 9, 9, 9], [5, 7]] * 2):
            batch = batch_of(lengths, student.dimensions, seed)
            losses.append(float(step(batch=batch)))
        state = optimizer.adamw.state[student.bert.embeddings.word_embeddings.weight]
        # The softmax cancels key biases: their gradient is rounding alone, which AdamW makes large.
        weights = {name: each for name, each in student.state_dict().items() if not name.endswith("key.bias")}
        outcomes.append((losses, weights, dict(state), optimizer.grad_norm))
    for one, other in zip(*outcomes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_overflow_leaves_filled_up_steps_out_too(tiny_model_dir: Path) -> None:
    student = Embedder.load(tiny_model_dir, "cpu", "fp32").train()
    recipe = Recipe(batch_size=2, precision="fp16", learning_rate=1e-3)
    optimizer = FlatOptimizer(student, recipe, CPU)
    optimizer.scaler = LossScale(torch.device("cpu"), scale=2.0**30)
    graphed, batch = GraphedStep(student, optimizer, recipe, CPU), batch_of([3, 4])
    losses = [float(graphed(batch)) for _ in range(32)]
    skipped = int(optimizer.skips[0])
    assert 0 < skipped < 32 and float(optimizer.scaler.scale) == 2.0 ** (30 - skipped)
    assert losses[0] == losses[skipped] > losses[-1]


def test_encoding_after_filled_up_steps_uses_the_new_weights(tiny_model_dir: Path) -> None:
    student = Embedder.load(tiny_model_dir, "cpu", "fp32")
    before = student.encode("the dog sees the cat")
    recipe = Recipe(batch_size=2, precision="fp32", learning_rate=1e-2)
    graphed = GraphedStep(student.train(), FlatOptimizer(student, recipe, CPU), recipe, CPU)
    graphed(batch_of([3, 4]))
    assert np.abs(student.eval().encode("the dog sees the cat") - before).max() > 1e-3


def test_where_every_token_occurs_or_a_sentence_is_too_long_the_step_is_an_ordinary_one(tiny_model_dir: Path) -> None:
    student = Embedder.load(tiny_model_dir, "cpu", "fp32").train()
    vocabulary = student.bert.config.vocab_size
    recipe = Recipe(batch_size=2, precision="fp32")
    graphed = GraphedStep(student, FlatOptimizer(student, recipe, CPU), recipe, CPU)
    everything = Tokenized(np.arange(vocabulary, dtype=np.int32), np.array([10, vocabulary - 10]))
    for batch in (LabelledSentences(everything, torch.zeros(2, 32)), batch_of([3, 513])):
        assert graphed._fill_up(batch) is None
    assert graphed._fill_up(batch_of([3, 512])) is not None
    assert float(graphed(LabelledSentences(everything, torch.zeros(2, 32)))) > 0


def test_steps_are_recorded_only_where_they_can_be(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = Embedder.load(tiny_model_dir, "cpu", "fp32")
    gpu = SimpleNamespace(device=SimpleNamespace(type="cuda"), world=1)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *_: tensor)
    monkeypatch.setattr(graph, "has_varlen_kernel", lambda qkv: qkv.dtype != torch.float32)
    half = Recipe(precision="bf16")
    assert why_not_graphed(student, half, gpu) == ""
    assert why_not_graphed(student, half, CPU) == "a CPU has no graphs"
    assert "runs of equally long" in why_not_graphed(student, Recipe(precision="fp32"), gpu)
    assert "gradient_accumulation" in why_not_graphed(student, Recipe(precision="bf16", gradient_accumulation=2), gpu)
    gpu.world = 2
    assert "ranks" in why_not_graphed(student, half, gpu)
