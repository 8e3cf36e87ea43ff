"""The loop behind `Embedder.encode`: tokenise ahead, batch by length, compute, copy back."""

import contextlib
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import chain
from typing import Any, Protocol

import numpy as np
import torch
from tokenizers import Tokenizer

from shortstack.model.files import InputError, first_line, is_out_of_memory
from shortstack.model.prefetch import one_behind, overlaps, prefetch
from shortstack.model.tokens import PackedTokens, Tokenized, fetch

CHUNK = 65_536  # sentences tokenised and sorted together: enough to fill every batch with equal lengths, little memory
GPU_CHUNK = 16_384  # fewer, since a GPU waits for the first of them
CPU_BATCH = 256  # sentences computed at a time on a CPU: longer batches start fewer operations


class Encoder(Protocol):
    """What the loop needs of an Embedder."""

    precision: str
    tokens_per_batch: int | None

    @property
    def device(self) -> torch.device: ...
    def __call__(self, tokens: PackedTokens, /) -> torch.Tensor: ...
    def embed(self, tokenized: Tokenized, batch_size: int | None, progress: Any = ...) -> torch.Tensor: ...
    def use_precision(self, precision: str) -> Any: ...


def tokens_of(tokenizer: Tokenizer, texts: Sequence[str], origin: str) -> Tokenized:
    """Token numbers of texts; `origin` is the model's name, for the error.

    Raises:
        InputError: a text is half a surrogate pair, or the tokenizer fails on it.
    """
    try:
        encodings = tokenizer.encode_batch_fast(texts)
    except TypeError:  # JSON can hold half a surrogate pair; UTF-8 and the tokenizer cannot
        bad = next((text for text in texts if text != text.encode(errors="replace").decode()), "")
        raise InputError(f"sentences: {ascii(bad[:60])} holds half a surrogate pair, which is no text") from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # a panic in Rust, which is not an Exception
            raise
        raise InputError(f"{origin}: the tokenizer fails on a sentence ({first_line(error)})") from None
    lengths = np.array([len(encoding) for encoding in encodings], dtype=np.int64)
    ids = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), np.int32, lengths.sum())
    return Tokenized(ids, lengths)


def tokenized_ahead(
    tokenize: Callable[[Sequence[str]], Tokenized], texts: Sequence[str], device: torch.device
) -> Generator[Tokenized, None, None]:
    """Tokenise texts a part at a time; for a GPU, the next part while it computes one."""
    size = GPU_CHUNK if overlaps(device) else CHUNK
    starts = range(0, len(texts), size)
    parts = (tokenize(texts[start : start + size]) for start in starts)
    return prefetch(parts, 1 if overlaps(device) and len(starts) > 1 else 0)


def embedded_parts(
    embedder: Encoder,
    parts: Generator[Tokenized, None, None],
    batch_size: int | None,
    where: torch.device,
    progress: Callable[[int], Any],
) -> Iterator[torch.Tensor]:
    """Embed tokenised parts: (b, dimensions) fp32 each, on the device `where`.

    A GPU computes the next part while one is copied to the host. A part with a number beyond fp16's range is computed
    again in fp32, and so are all that follow.
    """

    def launch(tokens: Tokenized) -> tuple[Tokenized, Callable[[], torch.Tensor], Callable[[], torch.Tensor] | None]:
        embeddings = embedder.embed(tokens, batch_size, progress)
        is_finite = fetch(embeddings.isfinite().all()) if embedder.precision == "fp16" else None
        return tokens, (lambda: embeddings) if where.type != "cpu" else fetch(embeddings), is_finite

    with contextlib.closing(parts):
        launched = map(launch, parts)
        for tokens, embeddings, is_finite in one_behind(launched) if overlaps(embedder.device) else launched:
            if is_finite is None or is_finite():
                yield embeddings()
            else:
                yield embed_in_fp32(embedder, tokens, batch_size).to(where)


def embed_in_fp32(embedder: Encoder, tokenized: Tokenized, batch_size: int | None) -> torch.Tensor:
    """Switch the embedder to fp32, with a warning, and embed again."""
    if embedder.precision == "fp16":  # else an earlier part has switched already
        warnings.warn("a number is beyond fp16's range: embeddings are computed in fp32 from here on", stacklevel=3)
        embedder.use_precision("fp32")
    return embedder.embed(tokenized, batch_size)


@torch.inference_mode()
def embedded_batches(
    embedder: Encoder, tokenized: Tokenized, most: int, budget: int
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Embed tokenised sentences in batches of equal length where possible, without a token of padding.

    A batch has at most `most` sentences and `budget` tokens. Where memory runs out it is tried again in halves, and
    later batches are no larger.

    Yields:
        (b,) indices in `tokenized`, and their (b, dimensions) fp32 embeddings; every sentence once.
    """
    lengths = tokenized.lengths
    order = np.argsort(-lengths, kind="stable")  # longest first: what does not fit in memory fails at once
    start = 0
    while start < len(order):
        longest = int(lengths[order[start]])
        indices = order[start : start + max(1, min(most, budget // longest))][::-1].copy()
        try:
            embeddings = embedder(PackedTokens.pack(tokenized.take(indices), embedder.device))
        except (RuntimeError, MemoryError) as error:
            if len(indices) == 1 or not is_out_of_memory(error):
                raise
            budget = embedder.tokens_per_batch = len(indices) * longest // 2
            continue
        yield indices, embeddings
        start += len(indices)


def tokens_that_suit(device: torch.device, hidden_size: int) -> int:
    """Tokens to compute at a time.

    On a GPU, as many as keep it busy for longer than the host takes to start a batch: 32,768 at 1024 dimensions, which
    take 1 GB in half precision, and 131,072 at 384. On a CPU fewer, so that long sentences fit into memory.
    """
    return 16_384 if device.type == "cpu" else min(131_072, 2**35 // hidden_size**2)
