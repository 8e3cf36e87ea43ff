"""Teacher embeddings, computed once: shards on disk that training reads window by window.

A shard is one safetensors file of up to `SHARD` sentences: their tokens (int32, end to end), their lengths
and their labels, with a checksum. Only one window of shards is in memory at a time, whatever the size of the corpus.
A directory of labels belongs to one fingerprint: teacher weights, tokenizer, pooling, precision and sentences.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from distillation.batches import window_batches
from distillation.ranks import Ranks
from distillation.sentences import Corpus
from model import Embedder
from model.files import InputError, RunError, load_tensors, read_json, save_tensors, sha256_of_tensors, write_json

SHARD = 16_384  # sentences of a shard
WINDOW = 4  # shards shuffled together in an epoch: at 1024 dimensions, 134 MB of fp16 labels in memory
EVALUATION = "evaluation"  # name of the one shard that holds the evaluation sentences


@dataclass
class LabelledSentences:
    """n sentences' tokens and labels in memory.

    Attributes:
        tokens: n arrays of (T,) token numbers.
        labels: (n, dimensions), fp16 or fp32.
    """

    tokens: list[np.ndarray]
    labels: torch.Tensor

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sentence, (n,)."""
        return np.array([len(tokens) for tokens in self.tokens])


@dataclass
class Labels:
    """A directory of finished shards.

    Attributes:
        directory: where they are.
        rows: training sentences.
        dimensions: of a label.
        tokens: statistics over the training sentences' lengths: min, mean, max.
    """

    directory: Path
    rows: int
    dimensions: int
    tokens: dict[str, float]

    @property
    def shards(self) -> int:
        return math.ceil(self.rows / SHARD)

    def evaluation(self) -> LabelledSentences:
        """The sentences held out from training."""
        return read_shards([self.directory / shard_name(EVALUATION)])

    def steps_per_epoch(self, batch_size: int) -> int:
        """Batches that `epoch` gives."""
        full, rest = divmod(self.rows, WINDOW * SHARD)
        return full * math.ceil(WINDOW * SHARD / batch_size) + math.ceil(rest / batch_size)

    def epoch(
        self, batch_size: int, seed: int, epoch: int, skip: int = 0
    ) -> Iterator[tuple[LabelledSentences, np.ndarray]]:
        """An epoch's batches, all of them or all after the first `skip`, as (window, places in it)."""
        generator = np.random.default_rng([seed, epoch])
        order = np.arange(self.shards)
        if self.rows % SHARD == 0:
            order = generator.permutation(self.shards)
        else:  # the shorter last shard stays last, so that every epoch has the same number of steps
            order[:-1] = generator.permutation(self.shards - 1)
        for start in range(0, len(order), WINDOW):
            names = [shard_name(number) for number in order[start : start + WINDOW]]
            steps = math.ceil(min(WINDOW * SHARD, self.rows - start * SHARD) / batch_size)
            if skip >= steps:
                skip -= steps
                continue
            window = read_shards([self.directory / name for name in names])
            shuffle = np.random.default_rng([seed, epoch, start])
            for places in window_batches(window.lengths, batch_size, shuffle)[skip:]:
                yield window, places
            skip = 0


def shard_name(number: int | str) -> str:
    return f"{number:05d}.safetensors" if not isinstance(number, str) else f"{number}.safetensors"


def read_shards(paths: Sequence[Path]) -> LabelledSentences:
    """Read shards into memory.

    Raises:
        InputError: a shard is missing or damaged.
    """
    tokens: list[np.ndarray] = []
    labels = []
    for path in paths:
        tensors, _ = load_tensors(path)
        ends = tensors["lengths"].cumsum(0)[:-1].numpy()
        tokens += np.split(tensors["input_ids"].numpy(), ends)
        labels.append(tensors["labels"])
    return LabelledSentences(tokens, torch.cat(labels))


def label_corpus(
    teacher: Embedder, corpus: Corpus, directory: Path | None, under: Path, storage: str, ranks: Ranks
) -> Labels:
    """The teacher's labels of a corpus: those on disk, and what is missing of them computed now, shared among the ranks.

    Args:
        teacher: in evaluation mode, in the precision it labels with.
        corpus: the sentences.
        directory: where the labels are or shall be; None takes a directory of the fingerprint's name in `under`.
        under: parent of such directories.
        storage: fp16 or fp32.
        ranks: shard i is computed by rank i modulo their number.

    Raises:
        InputError: `directory` holds the labels of another teacher, corpus or setting.
        RunError: the teacher gives NaN or infinite embeddings.
    """
    parts = fingerprint_parts(teacher, corpus, storage)
    fingerprint = hashlib.sha256(repr(sorted(parts.items())).encode()).hexdigest()
    directory = directory or under / fingerprint[:16]
    manifest = directory / "labels.json"
    if manifest.exists():
        found = read_json(manifest)
        if found.get("parts") != parts:
            differing = [key for key in parts if found.get("parts", {}).get(key) != parts[key]]
            raise InputError(
                f"{directory}: these labels are of another {' and '.join(differing)}; "
                "give another --labels directory, or delete this one"
            )
    elif ranks.is_main:
        write_json(manifest, {"parts": parts, "rows": len(corpus)})

    names: list[int | str] = [EVALUATION, *range(math.ceil(len(corpus) / SHARD))]
    mine = names[ranks.rank :: ranks.world]
    found_lengths = {name: whole_shard_lengths(directory / shard_name(name)) for name in mine}
    missing = [name for name in mine if found_lengths[name] is None]
    total = sum(corpus.evaluation_size if name == EVALUATION else shard_size(name, len(corpus)) for name in missing)
    with tqdm(total=total, desc="labels", unit=" sentences", disable=not (missing and ranks.is_main)) as progress:
        for name in missing:
            held_out = name == EVALUATION
            start = 0 if held_out else name * SHARD
            texts = corpus.evaluation() if held_out else corpus.sentences(start, start + shard_size(name, len(corpus)))
            shard = label_sentences(teacher, texts, progress.update)
            found_lengths[name] = shard.lengths
            write_shard(directory / shard_name(name), shard, storage)

    # How many training sentences have 0, 1, 2, ... tokens: small enough to exchange, whatever the corpus.
    histogram = torch.zeros(teacher.settings.max_length + 1, dtype=torch.int64)
    for name, lengths in found_lengths.items():
        if name != EVALUATION:
            histogram += torch.from_numpy(np.bincount(lengths, minlength=len(histogram)))
    histogram = ranks.sum(histogram.to(ranks.device)).cpu()  # also waits until every rank's shards are written
    occurring = histogram.nonzero().flatten()
    mean = float((histogram * torch.arange(len(histogram))).sum() / histogram.sum())
    tokens = {"min": int(occurring[0]), "mean": mean, "max": int(occurring[-1])}
    return Labels(directory, len(corpus), teacher.dimensions, tokens)


def fingerprint_parts(teacher: Embedder, corpus: Corpus, storage: str) -> dict[str, Any]:
    """Everything that decides what the labels are, by the name a user knows it by."""
    settings = teacher.settings
    weights = sha256_of_tensors(teacher.state_dict())
    return {
        "teacher": hashlib.sha256((weights + teacher.tokenizer.backend_tokenizer.to_str()).encode()).hexdigest(),
        "sentences": corpus.fingerprint,
        "pooling": f"{settings.pooling}, normalize {settings.normalize}, dense {teacher.dense_activation}",
        "max_length": f"{settings.max_length}, lowercase {settings.lowercase}",
        "precision": f"computed in {teacher.precision}, stored in {storage}",
        "shard size": SHARD,
    }


def label_sentences(
    teacher: Embedder, sentences: Sequence[str], progress: Callable[[int], Any] = lambda n: None
) -> LabelledSentences:
    """Tokenise sentences and embed them with the teacher.

    Raises:
        RunError: an embedding is NaN or infinite.
    """
    tokens = teacher.tokenize(sentences)
    labels = torch.empty(len(tokens), teacher.dimensions)
    for rows, embeddings in teacher.encode_tokens(tokens):
        labels[torch.from_numpy(rows)] = embeddings.cpu()
        progress(len(rows))
    finite = labels.isfinite().all(dim=1)
    if not finite.all():
        bad = sentences[int((~finite).nonzero()[0])]
        raise RunError(f"the teacher's embedding of {bad[:60]!r} is not finite; try --precision fp32")
    return LabelledSentences(tokens, labels)


def write_shard(path: Path, shard: LabelledSentences, storage: str) -> None:
    """Write a shard, whole or not at all.

    Raises:
        RunError: a label does not fit into fp16.
    """
    labels = shard.labels.to(torch.float16 if storage == "fp16" else torch.float32)
    if not labels.isfinite().all():
        raise RunError("a label is beyond fp16's largest number, 65504; run with --label-precision fp32")
    input_ids = torch.from_numpy(np.concatenate(shard.tokens))
    lengths = torch.from_numpy(shard.lengths.astype(np.int32))
    save_tensors(path, {"input_ids": input_ids, "lengths": lengths, "labels": labels})


def whole_shard_lengths(path: Path) -> np.ndarray | None:
    """A shard's sentence lengths; None where it is missing, or damaged, which is said."""
    if not path.exists():
        return None
    try:
        return load_tensors(path)[0]["lengths"].numpy()
    except (InputError, KeyError) as error:
        print(f"labelled anew: {error}")
        return None


def shard_size(number: int, rows: int) -> int:
    return min(SHARD, rows - number * SHARD)
