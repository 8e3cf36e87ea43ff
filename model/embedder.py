"""Embedder: sentences in, vectors out. Tokenizer, encoder and pooling in one module, in the field's file layout.

embedder = Embedder.load("runs/minilm-3/model")
embeddings = embedder.encode(["one sentence", "another"])   # (2, dimensions) float32 numpy
similarities = embedder.similarity(embeddings, embeddings)  # (2, 2) cosine
"""

import contextlib
import copy
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import normalizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from shortstack.model.directory import Parts, Settings, read_model, usable_device
from shortstack.model.encoding import (
    CPU_BATCH,
    embed_in_fp32,
    embedded_batches,
    embedded_parts,
    tokenized_ahead,
    tokens_of,
    tokens_that_suit,
)
from shortstack.model.engine.calibration import TEXT, calibrate
from shortstack.model.engine.encoder import Engine, lay_out
from shortstack.model.engine.int8 import Calibration
from shortstack.model.files import InputError
from shortstack.model.network import PackedForward
from shortstack.model.pooling import Pooling
from shortstack.model.precision import resolve_precision
from shortstack.model.progress import progress_bar
from shortstack.model.saving import write_model
from shortstack.model.tokens import PackedTokens, Tokenized, to_device

TOKENIZED_LETTERS = 2**20  # tokenised together: before it truncates them, the tokenizer takes some 100 bytes for each
# What a text is for, and the names of the prompts that go before it by the field's habit, the first that a model has.
ROLE_PROMPTS = {"query": ("query",), "document": ("document", "passage", "corpus")}
ROLES = ("", *ROLE_PROMPTS)  # "" takes the model's default prompt, if it has one, as `encode` does
CALIBRATION_TOKENS = 8192
Forward = Callable[[PackedTokens, Pooling], torch.Tensor]

if hasattr(os, "register_at_fork"):
    # A forked process has none of its parent's OpenMP threads, but GNU's OpenMP waits for them, forever. With one
    # thread it waits for none. This is for `datasets.map(num_proc=2)` and for `multiprocessing` with "fork".
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


class Embedder(nn.Module):
    """A sentence embedder: DistilledBert or another encoder, pooling, an optional dense layer, optional normalisation.

    Texts go into `encode`, their tokens into `embed`, and one packed batch into the module itself, `forward`. In
    training mode `forward` computes with the network; in evaluation mode with an engine, the same weights laid out for
    encoding. It can be pickled, without its engine, and so sent to other processes. A forked process computes with one
    thread.
    """

    bert: Any  # a PackedForward that is one of transformers' models

    def __init__(
        self,
        bert: PackedForward,
        tokenizer: PreTrainedTokenizerFast,
        settings: Settings,
        dense: nn.Linear | None = None,
        dense_activation: str = "Identity",
        calibration: Calibration | None = None,
    ) -> None:
        super().__init__()
        self.bert = bert
        self.tokenizer = tokenizer
        self.settings = settings
        self.dense = dense
        self.dense_activation = dense_activation
        if getattr(bert, "pooler", None) is not None:
            self.bert.pooler.requires_grad_(False)  # no embedding depends on it
        self.precision = "fp32"
        self.calibration = calibration  # the ranges that int8 rounds by
        self._engine: Engine | None = None
        self.forward_in_training: Forward | None = None  # replaces `bert.forward_packed`, with the same results
        self.tokens_per_batch: int | None = None  # at most this many at a time; None: what suits the device
        # A copy: other users of the tokenizer may change its truncation and padding.
        self._rust_tokenizer = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
        self._rust_tokenizer.no_padding()
        if settings.lowercase:
            parts = [part for part in (normalizers.Lowercase(), self._rust_tokenizer.normalizer) if part is not None]
            self._rust_tokenizer.normalizer = normalizers.Sequence(parts)
        self.set_max_length(settings.max_length)

    # -- loading and saving ------------------------------------------------------------------------------------------

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str | torch.device | None = None,
        precision: str = "auto",
        pooling: str | None = None,
        max_length: int | None = None,
    ) -> "Embedder":
        """Load a model directory or a Hub name, ready to encode.

        Args:
            path: directory in the sentence-transformers or the plain transformers layout, or a Hub name.
            device: such as "cpu" or "cuda:1"; None takes a GPU if there is one.
            precision: auto, fp32, bf16, fp16 or int8 (CPU); the fp32 weights are kept as well.
            pooling: cls or mean in place of what the model's files say.
            max_length: tokens of a sentence that are read, in place of what the model's files say.

        Raises:
            InputError: no such model, a corrupt file, an architecture that is not supported, or a max_length beyond it.
        """
        embedder = cls(*read_model(str(path)))
        if pooling is not None:
            if pooling not in list(Pooling):
                raise InputError(f"pooling: {pooling!r} is not one of {', '.join(Pooling)}")
            embedder.settings.pooling, embedder.settings.notes = Pooling(pooling), []
        if max_length is not None:
            embedder.set_max_length(max_length)
        return embedder.eval().to(usable_device(device)).use_precision(precision)

    def save(self, path: str | Path, model_card: str | None = None) -> None:
        """Write the model directory, whole or not at all: weights in fp32 under transformers' tensor names.

        Args:
            path: the directory; one already there is replaced.
            model_card: README.md's text; None leaves a short one.
        """
        self._forget_outdated()
        parts = Parts(self.bert, self.tokenizer, self.settings, self.dense, self.dense_activation, self.calibration)
        write_model(parts, Path(path), model_card)

    def use_precision(self, precision: str) -> "Embedder":
        """Lay out the weights, as they are now, for encoding in this precision; see `load`. Returns self."""
        self._forget_outdated()
        self.precision, self._engine = resolve_precision(precision, self.device), None
        self._engine = self.engine
        return self

    @property
    def engine(self) -> Engine:
        """The weights laid out for encoding; laid out again after they changed or moved to another device."""
        self._forget_outdated()
        if self._engine is None or self._engine.device != self.device:
            precision = resolve_precision(self.precision, self.device)
            if precision == "int8" and self.calibration is None:
                self.calibrate([])
            self._engine = lay_out(self.bert, precision, self.calibration)
        return self._engine

    @contextlib.contextmanager
    def with_layers(self, layers: Sequence[int]) -> Iterator[None]:
        """While the block runs, encode with only these layers, counted from 0; nothing is copied."""
        whole = self.engine
        self._engine = whole.with_layers(layers)
        try:
            yield
        finally:
            self._engine = whole

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_engine": None, "forward_in_training": None}  # repacked weights can't be pickled

    def calibrate(self, sentences: Sequence[str]) -> None:
        """Measure the ranges that int8 encoding rounds by; `use_precision` then uses them and `save` keeps them.

        The package's own text is measured too: long sentences reach numbers that short ones never do.

        Args:
            sentences: a few hundred like those to encode, with their prompts; at most 8,192 tokens are read.
        """
        self._forget_outdated()  # else `save` would find weights that changed, and drop these ranges with the old ones
        tokenized = self.tokenize([*TEXT.read_text(encoding="utf-8").splitlines(), *sentences])
        count = max(1, int((tokenized.lengths.cumsum() <= CALIBRATION_TOKENS).sum()))
        order = np.argsort(tokenized.lengths[:count], kind="stable")
        batches = [order[start : start + CPU_BATCH] for start in range(0, count, CPU_BATCH)]
        packed = [PackedTokens.pack(tokenized.take(indices), self.device) for indices in batches]
        self.calibration = calibrate(self.bert, packed)

    def set_max_length(self, max_length: int) -> None:
        """Read this many tokens of a sentence, [CLS] and [SEP] included.

        Raises:
            InputError: more than the model has positions for, or too few to hold a word.
        """
        if not 3 <= max_length <= self.bert.longest:
            raise InputError(f"max_length: {max_length} must be from 3 to {self.bert.longest}, the model's positions")
        self.settings.max_length = max_length
        self._rust_tokenizer.enable_truncation(max_length, direction=self.tokenizer.truncation_side)

    def keep_layers(self, layers: Sequence[int]) -> "Embedder":
        """A new Embedder with copies of only these encoder layers, counted from 0, in fp32."""
        bert, settings, dense = self.bert.keep_layers(layers), copy.deepcopy(self.settings), copy.deepcopy(self.dense)
        return Embedder(bert, self.tokenizer, settings, dense, self.dense_activation).eval()

    @property
    def device(self) -> torch.device:
        return self.bert.embeddings.LayerNorm.weight.device

    @property
    def dimensions(self) -> int:
        """Length of an embedding."""
        whole = self.dense.out_features if self.dense is not None else self.bert.config.hidden_size
        return min(whole, self.settings.truncate_dim or whole)

    # -- tokens ------------------------------------------------------------------------------------------------------

    def tokenize(self, sentences: Sequence[str], prompt: str = "") -> Tokenized:
        """Token numbers of each sentence, [CLS] and [SEP] included, truncated to max_length."""
        if sum(map(len, sentences)) + len(prompt) * len(sentences) <= TOKENIZED_LETTERS:  # such as a query
            return tokens_of(self._rust_tokenizer, [prompt + sentence for sentence in sentences], self.settings.origin)
        sizes = np.cumsum([len(prompt) + len(sentence) for sentence in sentences])
        ends = [*(np.flatnonzero(np.diff(sizes // TOKENIZED_LETTERS)) + 1).tolist(), len(sentences)]
        parts = ([prompt + text for text in sentences[start:end]] for start, end in pairwise([0, *ends]))
        return Tokenized.joined([tokens_of(self._rust_tokenizer, part, self.settings.origin) for part in parts])

    # -- the forward -------------------------------------------------------------------------------------------------

    def forward(self, tokens: PackedTokens) -> torch.Tensor:
        """Embed a packed batch: (B, dimensions), fp32, in the batch's order."""
        if self.training:
            self.forget_engine()
            forward = self.forward_in_training or self.bert.forward_packed
            return self.finish(forward(tokens, self.settings.pooling))
        return self.finish(self.engine(tokens, self.settings.pooling))

    def forget_engine(self) -> None:
        """Drop the engine and its calibration: they were made from weights that are about to change."""
        self._engine = self.calibration = None

    def _forget_outdated(self) -> None:
        if self._engine is not None and self._engine.is_outdated():
            self.forget_engine()

    def finish(self, pooled_BD: torch.Tensor) -> torch.Tensor:
        """Pooled vectors (B, D) to embeddings (B, dimensions): dense layer, norm, truncation, if the model has them."""
        if self.dense is not None:
            with torch.autocast(pooled_BD.device.type, enabled=False):  # in fp32, in training too
                pooled_BD = getattr(nn, self.dense_activation)()(self.dense(pooled_BD))
        embeddings = F.normalize(pooled_BD, dim=-1) if self.settings.normalize else pooled_BD
        return embeddings[:, : self.settings.truncate_dim]

    # -- encode ------------------------------------------------------------------------------------------------------

    def encode(
        self,
        sentences: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool = False,
        *,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
    ) -> np.ndarray | torch.Tensor | list[torch.Tensor]:
        """Embed sentences. Names and meaning of the arguments are those of sentence-transformers.

        Args:
            sentences: one sentence, or many.
            prompt_name: name of one of the model's prompts to put before each sentence.
            prompt: the text itself to put before each sentence; used instead of `prompt_name` if both are given.
            batch_size: sentences computed at a time at most; None takes what suits the device.
            show_progress_bar: show progress on stderr.
            convert_to_numpy: return a numpy array; without this and the next, a list of tensors, or a string's tensor.
            convert_to_tensor: return a torch tensor on the model's device rather than numpy.
            normalize_embeddings: divide by the L2 norm, also where the model itself does not.
            truncate_dim: keep the leading dimensions only.

        Returns:
            (n, dimensions) float32, row i for sentence i; for a single string (dimensions,).

        Raises:
            InputError: not strings, a prompt the model does not have, or a number that makes no sense.
        """
        single = isinstance(sentences, str)
        texts: Sequence[str] = [sentences] if isinstance(sentences, str) else as_list(sentences)
        for name, value in (("batch_size", batch_size), ("truncate_dim", truncate_dim)):
            if value is not None and not (isinstance(value, Integral) and value >= 1):
                raise InputError(f"{name}: {value!r} must be a whole number of at least 1")
        before = self.prompt_text(prompt_name, prompt)
        where = self.device if convert_to_tensor else torch.device("cpu")  # they may not all fit on the GPU
        result = torch.empty(len(texts), min(self.dimensions, truncate_dim or self.dimensions), device=where)
        with progress_bar(len(texts), " sentences", disable=not show_progress_bar) as progress:
            start = 0
            parts = tokenized_ahead(partial(self.tokenize, prompt=before), texts, self.device)
            for part in embedded_parts(self, parts, batch_size, where, progress.update):
                result[start : start + len(part)] = part[:, :truncate_dim]
                start += len(part)
        if normalize_embeddings:
            result = F.normalize(result, dim=-1)
        result = result[0] if single else result
        if convert_to_tensor:
            return result
        result = result.cpu()
        if convert_to_numpy:
            return result.numpy()
        return result if single else list(result)

    def encode_query(self, sentences: str | Sequence[str], *arguments: Any, **options: Any) -> Any:
        """`encode`, with the model's prompt for queries before each sentence unless another is given."""
        return self._encode_as("query", sentences, *arguments, **options)

    def encode_document(self, sentences: str | Sequence[str], *arguments: Any, **options: Any) -> Any:
        """`encode`, with the model's prompt for documents before each sentence unless another is given."""
        return self._encode_as("document", sentences, *arguments, **options)

    def _encode_as(
        self,
        role: str,
        sentences: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        *arguments: Any,
        **options: Any,
    ) -> Any:
        if prompt_name is None and prompt is None:
            prompt = self.role_prompt(role)
        return self.encode(sentences, prompt_name, prompt, *arguments, **options)

    def embed(
        self,
        tokenized: Tokenized,
        batch_size: int | None = None,
        progress: Callable[[int], Any] = lambda n: None,
        check: bool = False,
    ) -> torch.Tensor:
        """Embed tokenised sentences: (n, dimensions) fp32 on the model's device, row i for sentence i.

        Args:
            tokenized: token numbers of n sentences.
            batch_size: sentences computed at a time at most; None takes what suits the device.
            progress: called with the number of sentences after every batch.
            check: wait for the result and, where a number went beyond fp16's range, compute everything again in fp32,
                and all later embeddings too. Without it nothing waits: a GPU may still be computing on return.
        """
        assert not self.training, "encode in evaluation mode: call .eval() first"
        if len(tokenized) == 1:  # a query: nothing to sort or to split
            with torch.no_grad():
                result = self(PackedTokens.pack(tokenized, self.device))
            progress(1)
        else:
            result = torch.empty(len(tokenized), self.dimensions, device=self.device)
            most = batch_size or (CPU_BATCH if self.device.type == "cpu" else len(tokenized))
            budget = self.tokens_per_batch or tokens_that_suit(self.device, self.bert.config.hidden_size)
            for indices, embeddings in embedded_batches(self, tokenized, most, budget):
                (rows,) = to_device([indices], self.device)
                result.index_copy_(0, rows.long(), embeddings)
                progress(len(indices))
        if check and self.precision == "fp16" and not result.isfinite().all():
            return embed_in_fp32(self, tokenized, batch_size)
        return result

    def prompt_text(self, prompt_name: str | None = None, prompt: str | None = None) -> str:
        """The text that goes before each sentence.

        Raises:
            InputError: the model has no prompt of that name.
        """
        if prompt is not None:
            return prompt
        name = prompt_name if prompt_name is not None else self.settings.default_prompt_name
        if name is None:
            return ""
        if name not in self.settings.prompts:
            known = ", ".join(map(repr, self.settings.prompts)) or "none"
            raise InputError(f"prompt_name: {name!r} is not among this model's prompts ({known})")
        return self.settings.prompts[name]

    def role_prompt(self, role: str) -> str:
        """The text before a sentence in this role, one of ROLES; empty where the model has no prompt for a named role.

        Source: the names and the order are those of sentence-transformers' encode_query and encode_document.
        """
        if not role:
            return self.prompt_text()
        prompts = self.settings.prompts
        return next((prompts[name] for name in ROLE_PROMPTS[role] if name in prompts), "")

    def with_prompts(self, sentences: Sequence[str], roles: Sequence[str]) -> list[str]:
        """Each sentence with the prompt of its own role before it, to be tokenised without any other."""
        texts = {role: self.role_prompt(role) for role in set(roles)}
        return [texts[role] + sentence for sentence, role in zip(sentences, roles, strict=True)]

    # -- similarity --------------------------------------------------------------------------------------------------

    @staticmethod
    def similarity(a: np.ndarray | torch.Tensor, b: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Cosine similarity of every row of a (n, d) with every row of b (m, d): (n, m)."""
        return unit_rows(a) @ unit_rows(b).T

    @staticmethod
    def similarity_pairwise(a: np.ndarray | torch.Tensor, b: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Cosine similarity of row i of a (n, d) with row i of b (n, d): (n,)."""
        return (unit_rows(a) * unit_rows(b)).sum(dim=-1)


def as_list(sentences: Any, takes: str = "encode: takes a string or a list of strings") -> list[str]:
    """The items of anything that can be iterated over, all of them strings.

    Raises:
        InputError: it can't be, or they are not; says what the caller `takes`.
    """
    try:
        texts = list(sentences)
    except TypeError:
        raise InputError(f"{takes}, got {type(sentences).__name__}") from None
    if not all(isinstance(text, str) for text in texts):
        raise InputError(takes)
    return texts


def unit_rows(vectors: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Rows divided by their L2 norm, as a torch tensor (n, d); one vector (d,) counts as one row."""
    matrix = torch.atleast_2d(torch.as_tensor(vectors).float())
    return F.normalize(matrix, dim=-1)
