"""A corpus on disk: deduplicated, shuffled, split; read through a memory map, so memory does not grow with it."""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from shortstack.distillation.data.on_disk import RUN, FirstRows, on_disk, spool_in
from shortstack.distillation.data.own import Own, Part
from shortstack.distillation.data.passages import ESTIMATE, Cutter
from shortstack.distillation.data.sentences import Texts, in_passages, read_sentences
from shortstack.distillation.data.sources import marked_source, split_marks, what_is_read, with_reading
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

BATCH_ROWS, BATCH_BYTES = 16_384, 2**25  # of a record batch at most, where it has more than one row
GATHERED = 8  # batches brought together in memory at a time when the corpus is written, of BATCH_BYTES together
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
    def file(self) -> "Rows":
        """The open Arrow file."""
        return Rows(pa.memory_map(str(self.path)))

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

    def parts(self, start: int, stop: int) -> Iterator[Texts]:
        """Rows start to stop - 1, those held out coming last, in parts of bounded size."""
        inner = [row for row in self.file.starts.tolist() if start < row < stop]
        for first, end in pairwise([start, *inner, stop]):
            yield self._read(first, end)

    def _read(self, start: int, stop: int) -> Texts:
        batch = self.file.gather(np.arange(start, stop))
        return Texts(batch["sentence"].to_pylist(), [ROLES[number] for number in batch["role"].to_pylist()])


@dataclass(frozen=True)
class Draw:
    """Which of the distinct sentences are trained on, and which are held out.

    Attributes:
        max_sentences: trained on at most; None for all.
        held_out: how many are held out.
        seed: of the draw and of the order.
        sampling: "mixed" draws both at random from all sources together; "in_order" holds out the same number from each
            source and trains on all of the first source, then all of the second, and so on, the last one cut at random
            where `max_sentences` is reached.
    """

    max_sentences: int | None
    held_out: int
    seed: int
    sampling: str = "mixed"


class Rows:
    """The rows of a memory-mapped Arrow file of sentences and roles, found by number.

    Attributes:
        reader: the file.
        starts: the row at which each of its batches starts, and their number as last.
    """

    def __init__(self, mapped: pa.MemoryMappedFile) -> None:
        self.reader = pa.ipc.open_file(mapped)
        sizes = [batch.num_rows for batch in self.batches()]
        self.starts = np.cumsum([0, *sizes])

    def batches(self) -> Iterator[pa.RecordBatch]:
        return (self.reader.get_batch(index) for index in range(self.reader.num_record_batches))

    def gather(self, rows: np.ndarray) -> pa.RecordBatch:
        """The sentences and roles at `rows`, in their order."""
        order = np.argsort(rows, kind="stable")
        pieces = [batch.take(pa.array(inside)) for batch, inside in self._by_batch(rows[order])]
        found = pa.concat_batches([pa.RecordBatch.from_pylist([], schema=SCHEMA), *pieces])
        return found.take(pa.array(np.argsort(order, kind="stable")))

    def bytes_of(self, rows: np.ndarray) -> np.ndarray:
        """How long the sentences at `rows` are."""
        order = np.argsort(rows, kind="stable")
        sizes = np.empty(len(rows), np.int64)
        pieces = (np.diff(offsets_of(batch))[inside] for batch, inside in self._by_batch(rows[order]))
        sizes[order] = np.concatenate([np.empty(0, np.int64), *pieces])
        return sizes

    def _by_batch(self, ascending: np.ndarray) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
        """Each batch that has some of the rows, with their places in it."""
        number = np.searchsorted(self.starts, ascending, side="right") - 1
        ends = np.append(np.flatnonzero(np.diff(number)) + 1, len(ascending))
        for start, end in pairwise([0, *ends[ends > 0].tolist()]):
            index = int(number[start])
            yield self.reader.get_batch(index), ascending[start:end] - self.starts[index]


def offsets_of(batch: pa.RecordBatch) -> np.ndarray:
    """Where each sentence of a batch starts in its bytes, and the end of the last."""
    column = batch.column(0)
    return np.frombuffer(column.buffers()[1], np.int64)[column.offset : column.offset + len(column) + 1]


def open_corpus(recipe: Recipe, cutter: Cutter, ranks: Ranks, vectors: TeacherVectors | None = None) -> Corpus:
    """The corpus of a recipe: gathered by rank 0 and then opened by the others, who wait as long as it takes.

    If another run is gathering the same corpus, this one waits for it. `cutter` makes passages for the recipe's
    teacher. `vectors` are those of the recipe's `teacher_vectors`; their texts then are the corpus.

    Raises:
        InputError: see `build_corpus`; or this rank sees another text than rank 0, or not what rank 0 wrote.
    """
    draw = Draw(recipe.max_sentences or None, recipe.evaluation_sentences, recipe.seed, recipe.sampling)
    reading = "" if recipe.reading == "auto" else recipe.reading
    texts = recipe.sentences or [f"lines@{text_source(source)}" for source in recipe.teacher_vectors]
    sources = [*(with_reading(source, reading) for source in texts), *recipe.general]
    own = Own.of(sources[: len(texts)], recipe.seed) if recipe.general else None
    cut_by = cutter.name if any(map(in_passages, sources)) else ""
    decides = (sources, astuple(draw), cut_by, *([own] if own else []))
    key = hashlib.sha256(repr(decides).encode()).hexdigest()[:16]
    directory = Path(recipe.output) / "corpus" / key
    if ranks.is_main:
        for line in filter(None, map(what_is_read, sources)):
            print(line, flush=True)
        with locked(directory.with_name(f".{key}.lock")), errors_about(directory, directory):
            remove_leftovers(directory)
            corpus = build_corpus(directory, sources, draw, cutter, own)
    ranks.wait_for_main("corpus")
    if not ranks.is_main:  # opened only: without the lock, and beside other ranks, nothing may be written there
        opened = finished_corpus(directory, key_of(sources, draw, cutter, own))
        if opened is None:
            raise InputError(
                f"{directory}: rank {ranks.rank} doesn't find the text there as rank 0 read it; --output must be "
                "shared, and the text must have the same paths and times on all hosts"
            )
        corpus = opened
    ranks.wait_for_all()  # rank 0 keeps the store: it must not end while another still waits there
    return replace(corpus, vectors=vectors, own=own)


def build_corpus(
    directory: Path, sources: list[str], draw: Draw, cutter: Cutter = ESTIMATE, own: Own | None = None
) -> Corpus:
    """Gather the distinct sentences of `sources` in `directory`, in random order, with some held out.

    A sentence in two roles counts as two. `cutter` makes passages of long texts where a source asks for it. With `own`,
    whose sources are the first of `sources`, only the user's texts are held out: see `choose_own`.

    Memory does not grow with the number of sentences. A corpus that was built from the same files with the same
    settings is used again when its fingerprint still holds.

    Raises:
        InputError: a source that cannot be read, or too few distinct sentences.
    """
    make_directory(directory)
    for stale in directory.glob(".spool.*"):
        stale.unlink()
    key = key_of(sources, draw, cutter, own)
    corpus = finished_corpus(directory, key)
    if corpus is not None:
        return corpus

    parts = [Part(source) for source in sources] if own is None else own.parts(sources[len(own.sources) :])
    path = directory / "sentences.arrow"
    with tempfile.NamedTemporaryFile(dir=directory, prefix=".spool.") as file, atomic_path(path) as temporary:
        spool = write_spool(Path(file.name), parts, cutter)
        training, evaluation = choose(spool, draw) if own is None else choose_own(spool, draw, own)
        rows = spool.keep([training, evaluation])
        fingerprint = write_corpus(temporary, spool.path, rows, len(training))
    release_freed_memory()
    counts = dict.fromkeys(sources, 0)
    for start in range(0, len(training), RUN):
        of_part = np.searchsorted(spool.starts, training[start : start + RUN], side="right") - 1
        for part, count in zip(parts, np.bincount(of_part, minlength=len(parts)).tolist(), strict=True):
            counts[part.source] += count
    sizes = {"size": len(training), "evaluation_size": len(evaluation)}
    manifest: dict[str, Any] = {**sizes, "fingerprint": fingerprint, "counts": counts}
    write_json(directory / "corpus.json", {"key": key, **manifest})
    return Corpus(path, **manifest)


def key_of(sources: list[str], draw: Draw, cutter: Cutter, own: Own | None) -> dict[str, Any]:
    """What decides a corpus, as corpus.json keeps it."""
    key = {
        "sources": [[source, file_stamps(source)] for source in sources],
        "settings": [*astuple(draw)],
        "passages": cutter.name if any(map(in_passages, sources)) else "",
    }
    if own is not None:
        key["held out"] = list(map(str, own.held_out))
    return key


def file_stamps(source: str) -> list[list[Any]]:
    """Name, size and time of change of a source's files; empty for a Hub dataset, which only its name identifies.

    Raises:
        InputError: a name that is not UTF-8.
    """
    _, parsed = marked_source(source)
    files = parsed.files or sorted(path for path in Path(parsed.dataset).rglob("*") if path.is_file())
    for path in files:
        try:
            str(path).encode()
        except UnicodeEncodeError:  # which corpus.json could not hold
            raise InputError(f"{source}: {ascii(str(path))} is not UTF-8; rename the file") from None
    return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def finished_corpus(directory: Path, key: dict[str, Any]) -> Corpus | None:
    """The corpus in `directory`, if it is the one asked for and whole."""
    try:
        manifest = read_json(directory / "corpus.json")
        if manifest.pop("key") != key:
            return None
        corpus = Corpus(directory / "sentences.arrow", **manifest)
        whole = fingerprint_of(corpus.file.batches(), corpus.size) == corpus.fingerprint
        return corpus if whole else None
    except (InputError, OSError, pa.ArrowException, KeyError, TypeError, ValueError, AttributeError):
        return None


# -- which sentences -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spool:
    """Every sentence that was read, in an Arrow file, part after part.

    Attributes:
        path: the file.
        parts: the parts of sources that were read.
        starts: the row where each part starts, and the end of the last, (parts + 1,).
        distinct: rows of the sentences that did not come before, ascending. Rows are kept on disk, and shuffled there:
            who draws from them changes this array.
    """

    path: Path
    parts: Sequence[Part]
    starts: np.ndarray
    distinct: np.ndarray

    def keep(self, rows: Iterable[np.ndarray]) -> np.ndarray:
        """Arrays of rows end to end, on disk."""
        return on_disk(self.path.parent, rows)


def choose(spool: Spool, draw: Draw) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows to hold out, in random order.

    Raises:
        InputError: there are too few.
    """
    rng = np.random.default_rng(draw.seed)
    rows = within_limits(spool, 0, rng)
    if len(rows) <= draw.held_out:
        raise InputError(
            f"{', '.join(part.source for part in spool.parts)}: {len(rows):,} distinct sentences, but "
            f"{draw.held_out:,} to hold out and 1 to train on are needed; add text or lower evaluation_sentences"
        )
    if draw.sampling == "in_order":
        return choose_in_order(rows, spool, draw, rng)
    rng.shuffle(rows)
    return rows[draw.held_out :][: draw.max_sentences], rows[: draw.held_out]


def within_limits(spool: Spool, first: int, rng: np.random.Generator) -> np.ndarray:
    """Of the rows of each part from the `first` on no more than its source's mark allows, drawn at random."""
    parts = split_at(spool.distinct, spool.starts)[first:]
    limits = [split_marks(part.source)[0].limit for part in spool.parts[first:]]
    if not any(limits):
        return spool.distinct[np.searchsorted(spool.distinct, spool.starts[first]) :]
    for part, limit in zip(parts, limits, strict=True):
        rng.shuffle(part)
        part[:limit].sort()
    return spool.keep(part[:limit] for part, limit in zip(parts, limits, strict=True))


def split_at(rows: np.ndarray, starts: np.ndarray) -> list[np.ndarray]:
    """Ascending rows, part by part."""
    return np.split(rows, np.searchsorted(rows, starts[1:-1]))


def choose_in_order(
    rows: np.ndarray, spool: Spool, draw: Draw, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """See `Draw.sampling`."""
    count = len(spool.parts)
    training: list[np.ndarray] = []
    evaluation: list[np.ndarray] = []
    for index, part in enumerate(split_at(rows, spool.starts)):
        share = draw.held_out // count + (index < draw.held_out % count)
        if len(part) < share:
            raise InputError(
                f"source {index + 1} of {count} adds {len(part):,} distinct sentences, but {share:,} are to be held "
                "out of it; lower evaluation_sentences or leave the source out"
            )
        rng.shuffle(part)
        evaluation.append(part[:share])
        training.append(part[share:])
    chosen = spool.keep(training)[: draw.max_sentences], spool.keep(evaluation)
    for part in chosen:
        rng.shuffle(part)
    return chosen


def choose_own(spool: Spool, draw: Draw, own: Own) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on from all sources, and rows to hold out from the user's alone, in random order.

    Where documents are held out, the held-out rows are from these, and what else is in them is not trained on; else
    they are at most a tenth of the user's texts.

    Raises:
        InputError: the user's text is too little.
    """
    rng, parts, files = np.random.default_rng(draw.seed), spool.parts, set(own.held_out)
    held_out = sum(part.files is not None and files.issuperset(part.files) for part in parts)
    users = sum(part.files is not None for part in parts)
    apart = spool.distinct[: np.searchsorted(spool.distinct, spool.starts[held_out])]
    rest = within_limits(spool, held_out, rng)
    user_rows = rest[: np.searchsorted(rest, spool.starts[users])]
    if not len(user_rows) or len(user_rows) + len(apart) < 2:
        raise InputError(f"{', '.join(own.sources)}: too little text to train on some and hold out some; add more")
    if not len(apart):
        drawn = spool.keep([user_rows])
        rng.shuffle(drawn)
        apart = drawn[: max(1, min(draw.held_out, len(user_rows) // 10))]
        parts_of_rest = (rest[start : start + RUN] for start in range(0, len(rest), RUN))
        rest = spool.keep(part[~np.isin(part, apart)] for part in parts_of_rest)
    rng.shuffle(rest)
    rng.shuffle(apart)
    return rest[: draw.max_sentences], apart[: draw.held_out]


# -- reading and writing ---------------------------------------------------------------------------------------------


def write_spool(path: Path, parts: Sequence[Part], cutter: Cutter) -> Spool:
    """Write every sentence of some parts of sources to an Arrow file, and find the distinct ones by a 128-bit hash."""
    starts = [0]
    batch: list[str] = []
    roles: list[int] = []
    size = 0
    with spool_in(path.parent) as file, pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        hashes = FirstRows(file)

        def write_batch() -> None:
            columns = [pa.array(batch, pa.large_string()), pa.array(roles, pa.int8())]
            writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
            batch.clear()
            roles.clear()

        for part in parts:
            role = ROLES.index(split_marks(part.source)[0].role)
            for sentence in read_sentences(part.source, cutter, part.files):
                hashes.add(hashlib.blake2b(sentence.encode(), digest_size=16, salt=bytes([role])).digest())
                batch.append(sentence)
                roles.append(role)
                size += len(sentence)
                if len(batch) == BATCH_ROWS or size > BATCH_BYTES:
                    write_batch()
                    size = 0
            starts.append(hashes.rows)
        if batch:
            write_batch()
        distinct = hashes.ascending(path.parent)
    return Spool(path, parts, np.array(starts), distinct)


def write_corpus(path: Path, spool: Path, rows: np.ndarray, size: int) -> str:
    """Write the spool's sentences at `rows`, the first `size` of them to train on; returns the fingerprint."""

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, len(rows), GATHERED * BATCH_ROWS):
            several = rows[start : start + GATHERED * BATCH_ROWS]
            for together in bounded(several, source.bytes_of(several)):
                gathered = source.gather(np.concatenate(together))
                offset = 0
                for part in together:
                    batch = gathered.slice(offset, len(part))
                    offset += len(part)
                    writer.write_batch(batch)
                    yield batch

    with pa.memory_map(str(spool)) as mapped, pa.OSFile(str(path), "wb") as sink:
        source = Rows(mapped)
        with pa.ipc.new_file(sink, SCHEMA) as writer:
            return fingerprint_of(batches(), size)


def bounded(rows: np.ndarray, sizes: np.ndarray) -> Iterator[list[np.ndarray]]:
    """Cut rows into batches of at most BATCH_ROWS rows and BATCH_BYTES, or one row, and bring several together that
    have no more bytes than that. `sizes` are the rows' bytes."""
    together: list[np.ndarray] = []
    total = 0
    for start in range(0, len(rows), BATCH_ROWS):
        part, ends = rows[start : start + BATCH_ROWS], np.cumsum(sizes[start : start + BATCH_ROWS])
        for batch in np.split(part, np.flatnonzero(np.diff(ends // BATCH_BYTES)) + 1):
            size = int(sizes[start : start + len(batch)].sum())
            start += len(batch)
            if together and total + size > BATCH_BYTES:
                yield together
                together, total = [], 0
            together.append(batch)
            total += size
    if together:
        yield together


def fingerprint_of(batches: Iterable[pa.RecordBatch], size: int) -> str:
    """SHA-256 over sentences' lengths, bytes and roles, batch by batch, and where training ends, in hexadecimal."""
    digest = hashlib.sha256()
    for batch in batches:
        batch.validate()
        offsets = offsets_of(batch)
        digest.update(np.diff(offsets).tobytes())
        digest.update(memoryview(batch.column(0).buffers()[2])[offsets[0] : offsets[-1]])
        digest.update(batch.column(1).to_numpy().tobytes())
    digest.update(str(size).encode())
    return digest.hexdigest()
