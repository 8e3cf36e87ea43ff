"""Teacher embeddings, computed once: shards on disk, made, checked and read.

A shard is one safetensors file of up to `shard_size` sentences: their tokens (int32, end to end), their lengths
and their labels, with a checksum, its own number and the fingerprint. epochs.py serves them to training.
A directory of labels belongs to one fingerprint: teacher weights, tokenizer, pooling, prompts, precision and sentences.
"""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shortstack.distillation import RunError
from shortstack.distillation.data.corpus import Corpus
from shortstack.distillation.host import release_freed_memory
from shortstack.distillation.ranks import Ranks
from shortstack.distillation.recipe import Recipe
from shortstack.model import Embedder
from shortstack.model.embedder import ROLES
from shortstack.model.files import InputError, flush_to_disk, read_json, remove_leftovers, temporary_beside, write_json
from shortstack.model.prefetch import overlaps, prefetch
from shortstack.model.progress import progress_bar
from shortstack.model.tensors import load_tensors, save_tensors, sha256_of_tensors
from shortstack.model.tokens import Tokenized

EVALUATION = "evaluation"  # name of the one shard that holds the evaluation sentences
CHECKED = 100  # sentences that the teacher embeds again to check labels on disk
TOLERANCE = 0.1  # bf16 is 0.01 from fp32, and may round differently among other sentences; another prompt gives 0.7

Retokenize = Callable[[int | str, Tokenized], Tokenized]  # (a shard's name, the teacher's tokens) -> the student's


@dataclass(frozen=True)
class LabelledSentences:
    """n sentences' tokens and labels in memory.

    Attributes:
        tokens: token numbers.
        labels: (n, dimensions), fp16 or fp32.
    """

    tokens: Tokenized
    labels: torch.Tensor

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sentence, (n,)."""
        return self.tokens.lengths

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, indices: np.ndarray) -> "LabelledSentences":
        """The sentences at these indices, in this order."""
        return LabelledSentences(self.tokens.take(indices), self.labels[torch.from_numpy(indices)])


@dataclass(frozen=True)
class Labels:
    """A directory of finished shards.

    Attributes:
        directory: where they are.
        rows: training sentences.
        shard_size: sentences of every shard but the last.
        window_shards: shards in memory at a time; their sentences are shuffled together.
        dimensions: of a label.
        tokens: statistics over the training sentences' lengths: min, mean, max.
        pieces: how often each of the teacher's pieces occurs in the training sentences, (its vocabulary,).
        fingerprint: of everything that decides what the labels are.
        retokenize: gives the student's tokens; None if they are the same as the teacher's.
        difference: between labels on disk and the teacher's embeddings now, on some sentences, relative to their L2
            norm.
    """

    directory: Path
    rows: int
    shard_size: int
    window_shards: int
    dimensions: int
    tokens: dict[str, float]
    pieces: np.ndarray
    fingerprint: str
    retokenize: Retokenize | None = None
    difference: float = 0.0

    @property
    def shards(self) -> int:
        return math.ceil(self.rows / self.shard_size)

    def evaluation(self) -> LabelledSentences:
        """The sentences held out from training."""
        return self.read([EVALUATION])

    def read(self, names: Sequence[int | str]) -> LabelledSentences:
        """Read shards into memory, with the student's tokens."""
        paths = [self.directory / shard_name(name) for name in names]
        if self.retokenize is None:
            return read_shards(paths, self.fingerprint)
        shards = [read_shards([path], self.fingerprint) for path in paths]
        tokens = [self.retokenize(name, shard.tokens) for name, shard in zip(names, shards, strict=True)]
        return LabelledSentences(Tokenized.joined(tokens), torch.cat([shard.labels for shard in shards]))


def shard_name(number: int | str) -> str:
    return f"{number:05d}.safetensors" if not isinstance(number, str) else f"{number}.safetensors"


def read_shards(paths: Sequence[Path], fingerprint: str) -> LabelledSentences:
    """Read shards of the labels of this fingerprint into memory.

    Raises:
        InputError: a shard is missing or corrupt, or another shard lies in its place.
    """
    shards = [read_shard(path, fingerprint) for path in paths]
    ids, lengths, labels = (torch.cat([shard[key] for shard in shards]) for key in ("input_ids", "lengths", "labels"))
    return LabelledSentences(Tokenized(ids.numpy(), lengths.numpy()), labels)


def read_shard(path: Path, fingerprint: str) -> dict[str, torch.Tensor]:
    """input_ids, lengths and labels of one shard.

    Raises:
        InputError: it is missing or corrupt, or another shard lies in its place.
    """
    try:
        tensors, identity = load_tensors(path)
    except InputError as error:
        reason = str(error).partition("; ")[0]
    else:
        if identity == identity_of(path, fingerprint):
            return tensors
        reason = f"{path}: not this shard of these labels"
    raise InputError(f"{reason}; run again with --resume: the shard is then labelled again")


def identity_of(path: Path, fingerprint: str) -> dict[str, str]:
    """A shard's name and labels, written into it, so that a shard copied over another one is noticed."""
    return {"shard": path.stem, "labels": fingerprint}


def label_corpus(teacher: Embedder, corpus: Corpus, recipe: Recipe, ranks: Ranks) -> Labels:
    """The teacher's labels of a corpus: those on disk; missing ones are computed now, the work shared among the ranks.

    Args:
        teacher: in evaluation mode, in the precision it labels with. It only tokenises where the corpus has vectors.
        corpus: the sentences.
        recipe: `labels`, their directory, by default one named after the fingerprint under `output`;
            `label_precision` and the sizes of a shard and a window.
        ranks: shard i is computed by rank i modulo their number.

    Raises:
        InputError: the directory holds the labels of another teacher, corpus or setting, or labels that differ
            from what the teacher gives now, or not all ranks see it.
        RunError: the teacher gives NaN or infinite embeddings.
    """
    parts = fingerprint_parts(teacher, corpus, recipe)
    fingerprint = fingerprint_of(parts)
    directory = Path(recipe.labels or Path(recipe.output) / "labels" / fingerprint[:16])
    manifest = directory / "labels.json"
    if ranks.is_main:
        write_once(manifest, {"parts": parts, "rows": len(corpus)})
    if manifest.exists():
        value = read_json(manifest)
        on_disk = value.get("parts", {}) if isinstance(value, dict) else {}
        if on_disk != parts:
            differing = [key for key in parts if on_disk.get(key) != parts[key]]
            raise InputError(
                f"{directory}: these labels are of another {' and '.join(differing)}; "
                "give another --labels directory, or delete this one"
            )
    if ranks.is_main:
        remove_leftovers(directory)

    names: list[int | str] = [EVALUATION, *range(math.ceil(len(corpus) / recipe.shard_size))]
    store = Store(directory, fingerprint, recipe.shard_size, recipe.label_precision)
    counts = label_shards(teacher, corpus, store, names[ranks.rank :: ranks.world], ranks.is_main)
    # Summing also waits until every rank's shards are written.
    histogram, pieces = (ranks.sum(torch.from_numpy(array).to(ranks.device)).cpu() for array in counts)
    unseen = [path for path in (directory / shard_name(name) for name in names) if not path.exists()]
    if ranks.any(bool(unseen)):  # all end here together: none waits for one that has left
        sees = f"rank {ranks.rank} does not see it" if unseen else "another rank does not see one of its files"
        raise InputError(
            f"{unseen[0] if unseen else directory}: written, but {sees}; --output and --labels must be on a file "
            "system that all hosts share"
        )
    occurring = histogram.nonzero().flatten()
    mean = float((histogram * torch.arange(len(histogram))).sum() / histogram.sum())
    tokens = {"min": int(occurring[0]), "mean": mean, "max": int(occurring[-1])}
    labels = Labels(
        directory=directory,
        rows=len(corpus),
        shard_size=recipe.shard_size,
        window_shards=recipe.window_shards,
        dimensions=teacher.dimensions if corpus.vectors is None else corpus.vectors.dimensions,
        tokens=tokens,
        pieces=pieces.numpy(),
        fingerprint=fingerprint,
    )
    return replace(labels, difference=check_labels(labels, teacher, corpus))


def check_labels(labels: Labels, teacher: Embedder, corpus: Corpus) -> float:
    """The relative difference between labels on disk and the teacher's embeddings now, on the first held-out sentences.

    Raises:
        InputError: it is more than rounding explains.
    """
    kept = labels.read([EVALUATION]).labels[:CHECKED].float()
    texts = sentences_of(EVALUATION, corpus, teacher, labels.shard_size)[:CHECKED]
    if corpus.vectors is None:
        again = torch.as_tensor(teacher.encode(texts, prompt=""))
    else:
        again = torch.from_numpy(corpus.vectors.of(texts))
    difference = float((again - kept).norm() / again.norm())
    if not difference <= TOLERANCE:
        raise InputError(
            f"{labels.directory}: these labels differ from the teacher's embeddings by {difference:.0%} of their "
            "length; give another --labels directory, or delete this one"
        )
    return difference


def write_once(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all, unless the file exists: of two runs that start together only one writes it."""
    with temporary_beside(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        flush_to_disk(temporary)
        try:
            os.link(temporary, path)
            flush_to_disk(path.parent)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            if not path.exists():
                write_json(path, value)


@dataclass(frozen=True)
class Store:
    """Where shards of labels are kept, and how: the directory, their fingerprint, their size, and fp16 or fp32."""

    directory: Path
    fingerprint: str
    shard_size: int
    precision: str


def label_shards(
    teacher: Embedder, corpus: Corpus, store: Store, names: Sequence[int | str], show_progress: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Write those of the named shards that are missing or corrupt.

    Returns:
        How many training sentences in these shards have 0, 1, 2, ... tokens, (max_length + 1,), and how often each
        piece occurs in them, (vocabulary,): small enough to exchange between ranks whatever the size of the corpus.
    """

    def count(tokens: Tokenized, name: int | str) -> None:
        if name != EVALUATION:
            histogram[:] += np.bincount(tokens.lengths, minlength=len(histogram))
            pieces[:] += np.bincount(tokens.ids, minlength=len(pieces))

    histogram = np.zeros(teacher.settings.max_length + 1, dtype=np.int64)
    pieces = np.zeros(teacher.bert.config.vocab_size, dtype=np.int64)
    missing = []
    for name in names:
        shard = whole_shard(store.directory / shard_name(name), store.fingerprint)
        if shard is None:
            missing.append(name)
        else:
            count(shard.tokens, name)
    total = sum(rows_of(name, corpus, store.shard_size) for name in missing)

    def prepared(name: int | str) -> tuple[Tokenized, torch.Tensor | None]:
        """A shard's tokens and, where they are given, its labels; its text is never in memory as a whole."""
        vectors, parts, given = corpus.vectors, [], []
        for texts in text_parts(name, corpus, teacher, store.shard_size):
            parts.append(teacher.tokenize(texts))
            if vectors is not None:
                given.append(torch.from_numpy(vectors.of(texts)))
        return Tokenized.joined(parts), torch.cat(given) if given else None

    ahead = 1 if overlaps(teacher.device) else 0
    tokenised = prefetch(((name, *prepared(name)) for name in missing), ahead)
    with (
        progress_bar(total, " sentences", desc="labels", disable=not (missing and show_progress)) as progress,
        ThreadPoolExecutor(1) as writer,
        contextlib.closing(tokenised),
    ):
        written: Future[None] | None = None
        for name, tokens, given in tokenised:
            labels = teacher.embed(tokens, progress=progress.update) if given is None else given
            count(tokens, name)
            if written is not None:
                written.result()
            texts = partial(sentences_of, name, corpus, teacher, store.shard_size)
            written = writer.submit(finish_shard, store, name, texts, LabelledSentences(tokens, labels))
            if not ahead:
                written.result()
            release_freed_memory()
        if written is not None:
            written.result()
    return histogram, pieces


def fingerprint_parts(teacher: Embedder, corpus: Corpus, recipe: Recipe) -> dict[str, Any]:
    """Everything that decides what the labels are, under names that a user knows."""
    return teacher_parts(teacher) | {
        "sentences": corpus.fingerprint,
        "precision": f"computed in {teacher.precision}, stored in {recipe.label_precision}",
        "shard size": recipe.shard_size,
        "vectors": "" if corpus.vectors is None else corpus.vectors.fingerprint,
    }


def fingerprint_of(parts: dict[str, Any]) -> str:
    """SHA-256 over everything that decides what is kept on disk, in hexadecimal."""
    return hashlib.sha256(repr(sorted(parts.items())).encode()).hexdigest()


def teacher_parts(teacher: Embedder) -> dict[str, Any]:
    """Everything about a teacher that decides its embeddings, except its precision."""
    settings = teacher.settings
    bert = teacher.bert  # the part of its shape that the weights don't show:
    shape = f"{bert.config.num_attention_heads} {bert.activation} {bert.embeddings.LayerNorm.eps}"
    weights = sha256_of_tensors(teacher.state_dict(), shape + teacher.tokenizer.backend_tokenizer.to_str())
    return {
        "teacher": weights,
        "pooling": f"{settings.pooling}, normalize {settings.normalize}, dense {teacher.dense_activation}"
        + (f", cut to {settings.truncate_dim}" if settings.truncate_dim else ""),
        "max_length": f"{settings.max_length}, lowercase {settings.lowercase}",
        "prompts": [teacher.role_prompt(role) for role in ROLES],
    }


def finish_shard(store: Store, name: int | str, texts: Callable[[], list[str]], shard: LabelledSentences) -> None:
    """Fetch a shard's labels from the device, which may still be computing them, and write them.

    Raises:
        RunError: a label is not finite, or does not fit into fp16.
    """
    labels = shard.labels.cpu()
    is_finite = labels.isfinite().all(dim=1)
    if not is_finite.all():
        bad = texts()[int((~is_finite).nonzero()[0])]
        raise RunError(f"the teacher's embedding of {bad[:60]!r} is not finite; try --precision fp32")
    write_shard(store, name, LabelledSentences(shard.tokens, labels))


def write_shard(store: Store, name: int | str, shard: LabelledSentences) -> None:
    """Write a shard, whole or not at all.

    Raises:
        RunError: a label does not fit into fp16.
    """
    labels = shard.labels.to(torch.float16 if store.precision == "fp16" else torch.float32)
    if not labels.isfinite().all():
        raise RunError("a label is beyond fp16's largest number, 65504; run with --label-precision fp32")
    input_ids = torch.from_numpy(shard.tokens.ids)
    lengths = torch.from_numpy(shard.lengths.astype(np.int32))
    path = store.directory / shard_name(name)
    tensors = {"input_ids": input_ids, "lengths": lengths, "labels": labels}
    save_tensors(path, tensors, state=identity_of(path, store.fingerprint))


def whole_shard(path: Path, fingerprint: str) -> LabelledSentences | None:
    """A shard; None if it is missing or, after a line that says so, if it is corrupt or another one."""
    if not path.exists():
        return None
    try:
        return read_shards([path], fingerprint)
    except InputError as error:
        print(f"{str(error).partition('; ')[0]}; labelling it again", flush=True)
        return None


def sentences_of(name: int | str, corpus: Corpus, teacher: Embedder, shard_size: int) -> list[str]:
    """The text of a shard, each sentence with the teacher's prompt for its role before it."""
    return list(chain.from_iterable(text_parts(name, corpus, teacher, shard_size)))


def text_parts(name: int | str, corpus: Corpus, teacher: Embedder, shard_size: int) -> Iterator[list[str]]:
    """The same in parts of bounded size."""
    start = corpus.size if isinstance(name, str) else name * shard_size
    for texts in corpus.parts(start, start + rows_of(name, corpus, shard_size)):
        yield teacher.with_prompts(*texts)


def rows_of(name: int | str, corpus: Corpus, shard_size: int) -> int:
    """Sentences of a shard."""
    return corpus.evaluation_size if isinstance(name, str) else min(shard_size, len(corpus) - name * shard_size)
