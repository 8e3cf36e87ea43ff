"""A corpus on disk: deduplicated, shuffled, split; read through a memory map, so memory does not grow with it."""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from shortstack.distillation.data.own import Own, Part
from shortstack.distillation.data.passages import ESTIMATE, Cutter
from shortstack.distillation.data.sentences import Texts, in_passages, read_sentences
from shortstack.distillation.data.sources import parse_source, split_marks, what_is_read, with_reading
from shortstack.distillation.data.vectors import TeacherVectors, text_source
from shortstack.distillation.host import release_freed_memory
from shortstack.distillation.ranks import Ranks
from shortstack.distillation.recipe import Recipe
from shortstack.distillation.run import locked
from shortstack.model.embedder import ROLES
from shortstack.model.files import (
    InputError,
    atomic_path,
    errors_about,
    make_directory,
    read_json,
    remove_leftovers,
    write_json,
)

BATCH_ROWS = 16_384  # rows of every record batch but the last, so that a row's batch is its index divided by this
GATHER_ROWS = 8 * BATCH_ROWS  # rows brought together in memory at a time when the corpus is written
SCHEMA = pa.schema([("sentence", pa.large_string()), ("role", pa.int8())])  # the role is an index of ROLES


@dataclass(frozen=True)
class Corpus:
    """Distinct sentences in shuffled order, in a memory-mapped Arrow file: `size` to train on, then the held-out ones.

    `fingerprint` is the SHA-256 of all of them in order, of their roles and of the split; `counts` says how many of the
    training sentences came from each source. `vectors`, if given, are the labels of all sentences. `own` is
    there in a run on a user's own text with general text beside it: the held-out sentences are the user's then.
    """

    path: Path
    size: int
    evaluation_size: int
    fingerprint: str
    counts: dict[str, int]
    vectors: TeacherVectors | None = None
    own: Own | None = None

    def __len__(self) -> int:
        return self.size

    @cached_property
    def file(self) -> pa.RecordBatchFileReader:
        """The open Arrow file."""
        return pa.ipc.open_file(pa.memory_map(str(self.path)))

    def training(self, start: int, stop: int) -> Texts:
        """Training sentences start to stop - 1.

        Raises:
            IndexError: a row outside 0 to size.
        """
        if not 0 <= start <= stop <= self.size:
            raise IndexError(f"training sentences are numbered 0 to {self.size - 1}")
        return self._read(start, stop)

    def evaluation(self) -> Texts:
        """The held-out sentences."""
        return self._read(self.size, self.size + self.evaluation_size)

    def _read(self, start: int, stop: int) -> Texts:
        batch = gather(self.file, np.arange(start, stop))
        return Texts(batch["sentence"].to_pylist(), [ROLES[number] for number in batch["role"].to_pylist()])


def open_corpus(recipe: Recipe, cutter: Cutter, ranks: Ranks, vectors: TeacherVectors | None = None) -> Corpus:
    """The corpus of a recipe: gathered by rank 0 and then opened by the others, who wait as long as it takes.

    If another run is gathering the same corpus, this one waits for it. `cutter` makes passages for the recipe's
    teacher. `vectors` are those of the recipe's `teacher_vectors`; their texts then are the corpus.

    Raises:
        InputError: see `build_corpus`.
    """
    limits = (recipe.max_sentences or None, recipe.evaluation_sentences, recipe.seed, recipe.sampling)
    reading = "" if recipe.reading == "auto" else recipe.reading
    texts = recipe.sentences or [f"lines@{text_source(source)}" for source in recipe.teacher_vectors]
    sources = [*(with_reading(source, reading) for source in texts), *recipe.general]
    own = Own.of(sources[: len(texts)], recipe.seed) if recipe.general else None
    cut_by = cutter.name if any(in_passages(source) for source in sources) else ""
    key = hashlib.sha256(repr((sources, limits, cut_by, *([own] if own else []))).encode()).hexdigest()[:16]
    directory = Path(recipe.output) / "corpus" / key
    if ranks.is_main:
        for line in filter(None, map(what_is_read, sources)):
            print(line, flush=True)
        with locked(directory.with_name(f".{key}.lock")), errors_about(directory, directory):
            remove_leftovers(directory)
            corpus = build_corpus(directory, sources, *limits, cutter=cutter, own=own)
    ranks.wait_for_main("corpus")
    if not ranks.is_main:
        corpus = build_corpus(directory, sources, *limits, cutter=cutter, own=own)
    ranks.wait_for_all()  # rank 0 keeps the store: it must not end while another still waits there
    return replace(corpus, vectors=vectors, own=own)


def build_corpus(
    directory: Path,
    sources: list[str],
    max_sentences: int | None,
    evaluation_sentences: int,
    seed: int,
    sampling: str = "mixed",
    cutter: Cutter = ESTIMATE,
    own: Own | None = None,
) -> Corpus:
    """Gather the distinct sentences of `sources` in `directory`, shuffled by `seed`, with some held out.

    A sentence in two roles counts as two. `cutter` makes passages of long texts where a source asks for it.

    sampling="mixed" draws both parts at random from all sources together. sampling="in_order" holds out the same
    number from each source and trains on all of the first source, then all of the second, and so on, the last one cut
    at random where `max_sentences` is reached. With `own`, whose sources are the first of `sources`, only the user's
    texts are held out: see `choose_own`.

    Memory: about 25 bytes a sentence read. A corpus that was built from the same files with the same settings is used
    again when its fingerprint still holds.

    Raises:
        InputError: a source that cannot be read, or too few distinct sentences.
    """
    if sampling not in ("mixed", "in_order"):
        raise InputError(f"sampling {sampling!r}: choose mixed or in_order")
    if not sources:
        raise InputError("no sentences: name at least one file, glob or dataset")
    if evaluation_sentences < 0 or (max_sentences is not None and max_sentences < 1):
        raise InputError(f"max_sentences {max_sentences}, evaluation_sentences {evaluation_sentences}: too small")
    make_directory(directory)
    for stale in directory.glob(".spool.*"):
        stale.unlink()
    key = {
        "sources": [[source, file_stamps(source)] for source in sources],
        "settings": [max_sentences, evaluation_sentences, seed, sampling],
        "passages": cutter.name if any(in_passages(source) for source in sources) else "",
    }
    if own is not None:
        key["held out"] = list(map(str, own.held_out))
    corpus = finished_corpus(directory, key)
    if corpus is not None:
        return corpus

    parts = [Part(source) for source in sources] if own is None else own.parts(sources[len(own.sources) :])
    with tempfile.NamedTemporaryFile(dir=directory, prefix=".spool.") as spool:
        hashes, starts = write_spool(Path(spool.name), parts, cutter)
        distinct = np.flatnonzero(first_occurrences(hashes))
        del hashes
        rng = np.random.default_rng(seed)
        if own is None:
            distinct = within_limits(distinct, starts, parts, rng)
            training, evaluation = choose(distinct, starts, sources, max_sentences, evaluation_sentences, rng, sampling)
        else:
            training, evaluation = choose_own(distinct, starts, parts, own, max_sentences, evaluation_sentences, rng)
        counts = dict.fromkeys(sources, 0)
        for part, start, stop in zip(parts, starts[:-1], starts[1:], strict=True):
            counts[part.source] += int(np.count_nonzero((training >= start) & (training < stop)))
        path = directory / "sentences.arrow"
        size = len(training)
        with atomic_path(path) as temporary:
            fingerprint = write_corpus(temporary, Path(spool.name), np.concatenate([training, evaluation]), size)
    release_freed_memory()
    corpus = Corpus(path, size, len(evaluation), fingerprint, counts)
    manifest = {"size": size, "evaluation_size": len(evaluation), "fingerprint": fingerprint, "counts": counts}
    write_json(directory / "corpus.json", {"key": key, **manifest})
    return corpus


def file_stamps(source: str) -> list[list[Any]]:
    """Name, size and time of change of a source's files; empty for a Hub dataset, which only its name identifies."""
    parsed = parse_source(split_marks(source)[1], default_split="train")
    files = parsed.files or sorted(path for path in Path(parsed.dataset).rglob("*") if path.is_file())
    return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def finished_corpus(directory: Path, key: dict[str, Any]) -> Corpus | None:
    """The corpus in `directory`, if it is the one asked for and whole."""
    try:
        manifest = read_json(directory / "corpus.json")
        if manifest.pop("key") != key:
            return None
        corpus = Corpus(directory / "sentences.arrow", **manifest)
        batches = (corpus.file.get_batch(index) for index in range(corpus.file.num_record_batches))
        whole = fingerprint_of(batches, corpus.size) == corpus.fingerprint
        return corpus if whole else None
    except (InputError, OSError, pa.ArrowException, KeyError, TypeError, ValueError, AttributeError):
        return None


def choose(
    distinct: np.ndarray, starts: np.ndarray, sources: list[str], max_sentences: int | None,
    evaluation_sentences: int, rng: np.random.Generator, sampling: str,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Training and evaluation rows among the distinct ones, in shuffled order.

    Raises:
        InputError: there are too few.
    """
    if len(distinct) < evaluation_sentences + 1:
        raise InputError(
            f"{', '.join(sources)}: {len(distinct):,} distinct sentences, but {evaluation_sentences:,} to hold out "
            "and 1 to train on are needed; add text or lower evaluation_sentences"
        )
    draw = choose_mixed if sampling == "mixed" else choose_in_order
    return draw(distinct, starts, max_sentences, evaluation_sentences, rng)


def within_limits(
    distinct: np.ndarray, starts: np.ndarray, parts: Sequence[Part], rng: np.random.Generator
) -> np.ndarray:  # fmt: skip
    """The distinct rows, of each source no more than its mark allows, drawn at random."""
    limits = [split_marks(part.source)[0].limit for part in parts]
    if not any(limits):
        return distinct
    bounds = np.searchsorted(distinct, starts)
    slices = [distinct[start:stop] for start, stop in zip(bounds[:-1], bounds[1:], strict=True)]
    drawn = [rng.permutation(part)[:limit] for part, limit in zip(slices, limits, strict=True)]
    return np.sort(np.concatenate(drawn))


def choose_own(
    distinct: np.ndarray, starts: np.ndarray, parts: Sequence[Part], own: Own,
    max_sentences: int | None, evaluation_sentences: int, rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Training rows from all sources, evaluation rows from the user's alone, at random.

    Where documents are held out, evaluation rows are from these, and what else is in them is not trained on; else
    they are at most a tenth of the user's texts.

    Raises:
        InputError: the user's text is too little.
    """
    held_out = sum(part.files is not None and all(file in own.held_out for file in part.files) for part in parts)
    users = sum(part.files is not None for part in parts)
    apart = distinct[: np.searchsorted(distinct, starts[held_out])]
    rest = within_limits(distinct[len(apart) :], starts[held_out:], parts[held_out:], rng)
    user_rows = rest[: np.searchsorted(rest, starts[users])]
    if not len(user_rows) or len(user_rows) + len(apart) < 2:
        raise InputError(f"{', '.join(own.sources)}: too little text to train on some and hold out some; add more")
    if not len(apart):
        apart = rng.permutation(user_rows)[: max(1, min(evaluation_sentences, len(user_rows) // 10))]
        rest = np.setdiff1d(rest, apart)
    return rng.permutation(rest)[:max_sentences], rng.permutation(apart)[:evaluation_sentences]


def write_spool(path: Path, parts: Sequence[Part], cutter: Cutter) -> tuple[np.ndarray, np.ndarray]:
    """Write every sentence of some parts of sources to an Arrow file.

    Returns their 128-bit hashes (n, 2), uint64, and where each part starts, with the end as last (parts + 1,).
    """
    hashes = bytearray()
    starts = [0]
    batch: list[str] = []
    roles: list[int] = []
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:

        def write_batch() -> None:
            columns = [pa.array(batch, pa.large_string()), pa.array(roles, pa.int8())]
            writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
            batch.clear()
            roles.clear()

        for part in parts:
            role = ROLES.index(split_marks(part.source)[0].role)
            for sentence in read_sentences(part.source, cutter, part.files):
                hashes += hashlib.blake2b(sentence.encode(), digest_size=16, salt=bytes([role])).digest()
                batch.append(sentence)
                roles.append(role)
                if len(batch) == BATCH_ROWS:
                    write_batch()
            starts.append(len(hashes) // 16)
        if batch:
            write_batch()
    return np.frombuffer(hashes, np.uint64).reshape(-1, 2), np.array(starts)


def first_occurrences(hashes: np.ndarray) -> np.ndarray:
    """Which rows of `hashes` (n, 2) are the first of their value: (n,) bool.

    They are sorted in sixteen parts, so that sorting needs little memory beside the hashes themselves.
    """
    first = np.zeros(len(hashes), dtype=bool)
    part = (hashes[:, 0] >> np.uint64(60)).astype(np.uint8)
    for value in range(16):
        indices = np.flatnonzero(part == value)
        high, low = hashes[indices, 0], hashes[indices, 1]
        order = np.lexsort((low, high))  # stable: equal values stay in the order in which they appear
        high, low = high[order], low[order]
        new = np.ones(len(indices), dtype=bool)
        new[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
        first[indices[order[new]]] = True
    return first


def choose_mixed(
    distinct: np.ndarray, starts: np.ndarray, max_sentences: int | None, evaluation_sentences: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Training and evaluation rows, at random from all sources."""
    shuffled = rng.permutation(distinct)
    return shuffled[evaluation_sentences:][:max_sentences], shuffled[:evaluation_sentences]


def choose_in_order(
    distinct: np.ndarray, starts: np.ndarray, max_sentences: int | None, evaluation_sentences: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Evaluation rows, equally many of every source; training rows of the first source, then the next, until enough."""
    count = len(starts) - 1
    bounds = np.searchsorted(distinct, starts)
    training: list[np.ndarray] = []
    evaluation: list[np.ndarray] = []
    for index in range(count):
        share = evaluation_sentences // count + (index < evaluation_sentences % count)
        rows = rng.permutation(distinct[bounds[index] : bounds[index + 1]])
        if len(rows) < share:
            raise InputError(
                f"source {index + 1} of {count} adds {len(rows):,} distinct sentences, but {share:,} are to be held "
                "out of it; lower evaluation_sentences or leave the source out"
            )
        evaluation.append(rows[:share])
        room = None if max_sentences is None else max_sentences - sum(len(part) for part in training)
        training.append(rows[share:][:room])
    if not any(len(part) for part in training):
        raise InputError(f"all {evaluation_sentences:,} distinct sentences are held out; lower evaluation_sentences")
    parts = np.concatenate(training), np.concatenate(evaluation)
    for part in parts:
        rng.shuffle(part)
    return parts


def write_corpus(path: Path, spool: Path, rows: np.ndarray, size: int) -> str:
    """Write the spool's sentences at `rows`, the first `size` of them to train on; returns the fingerprint."""

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, len(rows), GATHER_ROWS):
            gathered = gather(source, rows[start : start + GATHER_ROWS])
            for offset in range(0, len(gathered), BATCH_ROWS):
                batch = gathered.slice(offset, BATCH_ROWS)
                writer.write_batch(batch)
                yield batch

    with pa.memory_map(str(spool)) as mapped, pa.OSFile(str(path), "wb") as sink:
        source = pa.ipc.open_file(mapped)
        with pa.ipc.new_file(sink, SCHEMA) as writer:
            return fingerprint_of(batches(), size)


def gather(file: pa.RecordBatchFileReader, rows: np.ndarray) -> pa.RecordBatch:
    """The sentences and roles at `rows` of an Arrow file in batches of BATCH_ROWS, in the order of `rows`."""
    order = np.argsort(rows, kind="stable")
    ascending = rows[order]
    ends = np.append(np.flatnonzero(np.diff(ascending // BATCH_ROWS)) + 1, len(rows))
    pieces, start = [pa.RecordBatch.from_pylist([], schema=SCHEMA)], 0
    for end in ends[ends > 0]:
        batch = file.get_batch(int(ascending[start]) // BATCH_ROWS)
        pieces.append(batch.take(pa.array(ascending[start:end] % BATCH_ROWS)))
        start = end
    return pa.concat_batches(pieces).take(pa.array(np.argsort(order, kind="stable")))


def fingerprint_of(batches: Iterable[pa.RecordBatch], size: int) -> str:
    """SHA-256 over sentences' lengths, bytes and roles, batch by batch, and where training ends, in hexadecimal."""
    digest = hashlib.sha256()
    for batch in batches:
        batch.validate()
        column = batch.column(0)
        _, offsets, data = column.buffers()
        offsets = np.frombuffer(offsets, np.int64)[column.offset : column.offset + len(column) + 1]
        digest.update(np.diff(offsets).tobytes())
        digest.update(memoryview(data)[offsets[0] : offsets[-1]])
        digest.update(batch.column(1).to_numpy().tobytes())
    digest.update(str(size).encode())
    return digest.hexdigest()
