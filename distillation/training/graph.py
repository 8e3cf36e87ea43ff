"""A step as one launch: `train_step` recorded as a CUDA graph, and replayed.

A step of 64 sentences keeps a GPU busy for 3 ms, and starts a thousand operations, which take the host 20. A CUDA graph
records them once and starts them all together. But it replays the very same operations on the very same memory. So:

* a batch is filled up to one of few sizes (a bucket) with sentences that have no label and no part in the loss, and
  with rows of the token table that are not trained; each bucket has a graph, all share one pool of memory;
* what changes from step to step is read from tensors that stay where they are: the batch, the learning rate, the scale
  of the loss, the seed of the dropout.

The first batch of a bucket takes an ordinary step over the same tensors, which loads every kernel; the second is
recorded, then replayed. Nothing is computed twice, and no state has to be put back.

Source: torch's notes on CUDA graphs (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs).
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import torch

from shortstack.distillation.data.labels import LabelledSentences
from shortstack.distillation.ranks import Ranks
from shortstack.distillation.recipe import Recipe
from shortstack.distillation.training.flat_optimizer import FlatOptimizer
from shortstack.distillation.training.optimizer import StudentOptimizer
from shortstack.distillation.training.rows import BatchRows, distinct_tokens
from shortstack.distillation.training.step import sum_of_losses, train_step
from shortstack.model import Embedder
from shortstack.model.attention import has_varlen_kernel
from shortstack.model.precision import dtype_of
from shortstack.model.tokens import TILE, PackedTokens, tile_bounds

# Buckets are multiples of it, and of a sixteenth of a batch's tokens: products take 128 rows at once
STEP_OF_TOKENS = 128
LONGEST = (TILE, 128, 512)  # tokens of a sentence at most, that buckets are made for
LONGEST_PADDING = TILE  # tokens of a sentence of padding at most, so that it never needs another kernel


@dataclasses.dataclass(frozen=True)
class Bucket:
    """The sizes of a batch that is filled up.

    Attributes:
        sentences: that have a label.
        padding: sentences more, at least one, which have none.
        tokens: of all of them.
        longest: tokens of a sentence at most.
        rows: of the token table.
    """

    sentences: int
    padding: int
    tokens: int
    longest: int
    rows: int

    @classmethod
    def for_batch(cls, lengths: np.ndarray, distinct: int) -> "Bucket":
        """The smallest that holds sentences of these lengths, (B,), with so many distinct tokens."""
        tokens, longest = int(lengths.sum()), int(lengths.max())
        step = max(STEP_OF_TOKENS, 2 ** int(np.log2(tokens) - 4))
        padding = -(-step // (LONGEST_PADDING - 1))  # enough for all of a step, and one token each at least
        filled = -(-(tokens + padding) // step) * step
        rows_step = -(-filled // 4)
        rows = (distinct // rows_step + 1) * rows_step  # at least one more: the token of the padding
        return cls(len(lengths), padding, filled, next(bound for bound in LONGEST if longest <= bound), rows)


def fill_up(
    batch: LabelledSentences, bucket: Bucket, distinct: np.ndarray, index_of: np.ndarray
) -> dict[str, np.ndarray]:
    """A batch with its padding, as the arrays of whole numbers that a step reads: int32, by name.

    Args:
        distinct, index_of: of `distinct_tokens`; not every token of the vocabulary occurs.

    Returns:
        ids: distinct tokens, (rows,), filled up with one that does not occur; count: of the batch's own, (1,); inverse:
        the row of each token among them, (tokens,); positions and segments: of each token, (tokens,); starts: of
        sentences, and the end, (sentences + padding + 1,); tiles: see `attend_tiles`.
    """
    unused_token = np.setdiff1d(np.arange(len(distinct) + 1), distinct)[0]  # the first that does not occur
    missing = bucket.tokens - len(batch.tokens.ids)
    lengths_of_padding = np.diff(np.linspace(0, missing, bucket.padding + 1).astype(np.int64))
    lengths = np.concatenate([batch.lengths, lengths_of_padding])
    starts = np.concatenate([[0], lengths.cumsum()])
    tiles = np.full(2 * bucket.tokens // TILE + 2, bucket.tokens)  # two neighbours hold more than one tile's tokens
    if bucket.longest == TILE:
        bounds = tile_bounds(lengths)
        tiles[: len(bounds)] = bounds
    arrays = {
        "ids": np.concatenate([distinct, np.full(bucket.rows - len(distinct), unused_token)]),
        "count": np.array([len(distinct)]),
        "inverse": np.concatenate([index_of[batch.tokens.ids], np.full(missing, len(distinct))]),
        "positions": np.arange(bucket.tokens) - np.repeat(starts[:-1], lengths),
        "segments": np.repeat(np.arange(len(lengths)), lengths),
        "starts": starts,
        "tiles": tiles,
    }
    return {name: array.astype(np.int32) for name, array in arrays.items()}


class StaticBatch:
    """A bucket's tensors on the device, which each batch is copied into."""

    def __init__(
        self, bucket: Bucket, arrays: dict[str, np.ndarray], labels: torch.Tensor, device: torch.device
    ) -> None:
        self.bucket, self.device = bucket, device
        sizes = [-(-len(array) // 4) * 4 for array in arrays.values()]  # each begins at a multiple of 16 bytes
        self._ints = torch.zeros(sum(sizes), dtype=torch.int32, device=device)
        parts = self._ints.split(sizes)
        self.tensors = {name: part[: len(arrays[name])] for name, part in zip(arrays, parts, strict=True)}
        self.labels = torch.zeros_like(labels, device=device)
        self._sizes = sizes
        rows = bucket.sentences + bucket.padding
        self._of_one = torch.arange(rows + 1, dtype=torch.int32, device=device)

    def load(self, arrays: dict[str, np.ndarray], labels: torch.Tensor) -> None:
        """Copy a batch in. The host does not wait."""
        together = np.zeros(sum(self._sizes), dtype=np.int32)
        for array, end, size in zip(arrays.values(), np.cumsum(self._sizes), self._sizes, strict=True):
            together[end - size : end - size + len(array)] = array
        for place, found in ((self._ints, torch.from_numpy(together)), (self.labels, labels)):
            place.copy_(found.pin_memory() if self.device.type == "cuda" else found, non_blocking=True)
        if self.device.type == "cpu":  # whose attention goes by the lengths
            self._lengths = torch.from_numpy(np.diff(arrays["starts"]).astype(np.int64))

    def packed(self, rows: BatchRows) -> PackedTokens:
        """The batch as the network reads it; what the host needs of it is the same for all of the bucket."""
        bucket, tensors = self.bucket, self.tensors
        count = bucket.sentences + bucket.padding
        lengths = self._lengths if self.device.type == "cpu" else torch.ones(count, dtype=torch.int64)
        tokens = PackedTokens(tensors["inverse"], tensors["positions"], lengths)
        tokens.cu_seqlens, tokens.longest = tensors["starts"], bucket.longest
        tokens.segments, tokens.tiles = tensors["segments"], tensors["tiles"]
        first = PackedTokens(tensors["inverse"][:count], tensors["positions"][:count], torch.ones_like(lengths))
        first.cu_seqlens, first.longest, first.groups = self._of_one, 1, [(0, count, 1)]
        tokens.of_first_tokens = first
        tokens.word_vectors = torch.nn.functional.embedding(tensors["inverse"], rows.vectors)
        return tokens


class GraphedStep:
    """Takes `train_step`'s steps on one GPU, by replaying a graph where the batch fits one.

    On a CPU the steps are computed over the filled-up batches without a graph, which is for tests.
    """

    def __init__(self, student: Embedder, optimizer: FlatOptimizer, recipe: Recipe, ranks: Ranks) -> None:
        self._student, self._optimizer, self._recipe, self._ranks = student, optimizer, recipe, ranks
        self._loss = torch.zeros((), device=ranks.device)
        self._batches: dict[Bucket, StaticBatch] = {}
        self.graphs: dict[Bucket, torch.cuda.CUDAGraph] = {}
        if ranks.device.type == "cuda":
            self._stream, self._pool = torch.cuda.Stream(ranks.device), torch.cuda.graph_pool_handle()

    def __call__(self, batch: LabelledSentences) -> torch.Tensor:
        """See `train_step`."""
        self._student.forget_engine()  # a replay runs none of the code that would
        filled = self._fill_up(batch)
        if filled is None:
            return train_step(self._student, self._optimizer, batch, self._recipe, self._ranks)
        bucket, arrays = filled
        is_new = bucket not in self._batches
        if is_new:
            self._batches[bucket] = StaticBatch(bucket, arrays, batch.labels, self._ranks.device)
        static = self._batches[bucket]
        static.load(arrays, batch.labels)
        if self._ranks.device.type == "cpu":
            self._step(static)
        elif is_new:
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                self._step(static)
            torch.cuda.current_stream().wait_stream(self._stream)
        else:
            if bucket not in self.graphs:
                self.graphs[bucket] = self._record(static)
            self.graphs[bucket].replay()
        return self._loss.clone()

    def _fill_up(self, batch: LabelledSentences) -> tuple[Bucket, dict[str, np.ndarray]] | None:
        """The batch's bucket and what to copy into it; None where an ordinary step is to be taken."""
        if len(batch) != self._recipe.batch_size:  # the last of a window
            return None
        distinct, index_of = distinct_tokens(batch.tokens, len(self._optimizer.table))
        if batch.lengths[-1] > LONGEST[-1] or len(distinct) == len(index_of):  # no token is left to fill up with
            return None
        bucket = Bucket.for_batch(batch.lengths, len(distinct))
        return bucket, fill_up(batch, bucket, distinct, index_of)

    def _record(self, static: StaticBatch) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # Other threads make batches meanwhile, and may call CUDA.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            self._step(static)
        return graph

    def _step(self, static: StaticBatch) -> None:
        """What `train_step` computes, over tensors that stay where they are."""
        rows = BatchRows.of_ids(self._optimizer.table, static.tensors["ids"])
        loss = sum_of_losses(self._student, static.packed(rows), static.labels, self._recipe) / static.bucket.sentences
        self._optimizer.backward(loss)
        self._optimizer.step(rows, static.tensors["count"][0])
        self._loss.copy_(loss.detach())


def step_for(
    student: Embedder, optimizer: StudentOptimizer, recipe: Recipe, ranks: Ranks
) -> Callable[[LabelledSentences], torch.Tensor]:
    """What takes a step of one rank's student as train.py does, given a batch: a graph where it fits."""
    graphed = graphed_step(student, optimizer, recipe, ranks)
    return graphed or (lambda batch: train_step(student, optimizer, batch, recipe, ranks))


def graphed_step(student: Embedder, optimizer: StudentOptimizer, recipe: Recipe, ranks: Ranks) -> GraphedStep | None:
    """What takes a step as a graph; None where it does not fit."""
    if why_not_graphed(student, recipe, ranks):
        return None
    assert isinstance(optimizer, FlatOptimizer)  # `optimizer_for` gives it wherever a graph fits
    return GraphedStep(student, optimizer, recipe, ranks)


def why_not_graphed(student: Embedder, recipe: Recipe, ranks: Ranks) -> str:
    """Why steps can't be recorded, in words; "" where they can."""
    if ranks.device.type != "cuda":
        return "a CPU has no graphs"
    if ranks.world > 1:
        return "several ranks exchange gradients within a step"
    if recipe.gradient_accumulation > 1:
        return "gradient_accumulation splits a step"
    if not student.bert.layers():
        return "the student has no layers"
    heads = student.bert.config.num_attention_heads
    sample = torch.zeros(1, 3, heads, student.bert.config.hidden_size // heads, dtype=dtype_of(recipe.precision))
    if student.bert.config.model_type == "mpnet" or not has_varlen_kernel(sample.to(ranks.device)):
        return "attention goes by runs of equally long sentences (fp32, a bias by position, or an old GPU)"
    return ""
