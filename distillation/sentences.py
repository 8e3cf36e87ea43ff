"""The text to train on and the judgements to evaluate by: from files or Hub datasets, onto disk, never all in memory.

A source of text is a file, a glob, a directory or a Hub dataset, and may name its parts:

    captions.txt    'captions/*.en.gz'    pairs.csv:premise,hypothesis    news.jsonl:text    wiki.parquet
    sentence-transformers/all-nli:pair-score:train:sentence1,sentence2
"""

import csv
import glob
import gzip
import hashlib
import itertools
import json
import math
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from model.files import InputError, atomic_path, read_json, write_json

Row = dict[str, Any]

LINE_LIMIT = 2**24  # bytes; a longer line is no text, and this bounds the memory that a damaged file can ask for
DATA_SUFFIXES = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".gz")
TEXT_COLUMN = re.compile(
    r"(sentence|text|anchor|positive|negative|query|question|answer|premise|hypothesis|caption|title|passage|document)"
    r"(_?\d+)?$",
    re.IGNORECASE,
)
STS_BENCHMARK_COLUMNS = ["genre", "file", "year", "id", "score", "sentence1", "sentence2"]
STS_COLUMNS = [("sentence1", "text1"), ("sentence2", "text2"), ("score", "similarity_score", "label")]


# Sources


@dataclass(frozen=True)
class Source:
    """Where rows come from: files, or a dataset (a Hub name or a local directory) with its config and split."""

    files: list[Path]
    dataset: str
    config: str
    split: str
    columns: list[str]


def parse_source(source: str, default_split: str) -> Source:
    """Read a source: PATH[:COLUMN,...] for a file or a glob, NAME[:CONFIG[:SPLIT[:COLUMN,...]]] for a dataset.

    A path that is there wins over a Hub name, also when it has colons in it. Empty parts stand for the default.

    Raises:
        InputError: no such file, a glob without a match, or too many parts.
    """
    parts = source.split(":")
    for count in range(len(parts), 0, -1):
        path, rest = ":".join(parts[:count]), parts[count:]
        files = [path] if os.path.isfile(path) else []
        if not files and re.search(r"[*?\[]", path) and "\0" not in path:
            files = sorted(match for match in glob.glob(path, recursive=True) if os.path.isfile(match))
        if files:
            if len(rest) > 1:
                raise InputError(f"{source}: a file takes column names only, as in {path}:sentence1,sentence2")
            return Source([Path(file) for file in files], "", "", "", split_columns(rest[0] if rest else ""))
        if os.path.isdir(path):
            parts = [path, *rest]
            break
    name = parts[0]
    if re.search(r"[*?\[]", name):
        raise InputError(f"{source}: no file matches")
    if not os.path.isdir(name) and (name.endswith(DATA_SUFFIXES) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name)):
        raise InputError(f"{source}: no such file")
    if len(parts) > 4:
        raise InputError(f"{source}: a dataset takes NAME:CONFIG:SPLIT:COLUMN,COLUMN at most")
    config, split, columns = (*parts[1:], "", "", "")[:3]
    return Source([], name, config, split or default_split, split_columns(columns))


def split_columns(text: str) -> list[str]:
    """'a,b' as ['a', 'b']."""
    return [column for column in text.split(",") if column]


def read_source(source: Source) -> Iterator[tuple[str, int, Row]]:
    """Every row of a source with where it is: the file's or dataset's name and the line's or row's number from 1."""
    if source.dataset:
        for number, row in read_dataset(source):
            yield source.dataset, number, row
    for path in source.files:
        for number, row in read_rows(path, source.columns):
            yield str(path), number, row


def read_dataset(source: Source) -> Iterator[tuple[int, Row]]:
    """The rows of a Hub dataset or a local dataset directory, streamed; no code from the dataset is run.

    Raises:
        InputError: it cannot be reached or read.
    """
    from datasets import load_dataset  # here, because it takes seconds to import and local files do without it

    try:
        rows = load_dataset(source.dataset, source.config or None, split=source.split, streaming=True)
        if source.columns and set(source.columns) <= set(rows.column_names or []):
            rows = rows.select_columns(source.columns)  # Parquet then reads only these
        yield from enumerate(rows, start=1)
    except Exception as error:  # the library and all it stands on raise too many kinds to name
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        what = "directory" if os.path.isdir(source.dataset) else "no such file here, and the Hub dataset of this name"
        raise InputError(
            f"{source.dataset}: {what} (config {source.config or 'default'}, split {source.split}) cannot be read "
            f"({reason}); check name and network, or pass local files"
        ) from None


def read_rows(path: Path, columns: list[str] | None = None) -> Iterator[tuple[int, Row]]:
    """The rows of one file by its name's ending, gzip or not; a text file's rows have one column, `text`.

    Raises:
        InputError: the file is missing, damaged or not UTF-8, with its line.
    """
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    try:
        if suffix == ".parquet":
            yield from parquet_rows(path, columns)
        elif suffix in (".csv", ".tsv"):
            yield from table_rows(path, suffix)
        elif suffix in (".json", ".jsonl", ".ndjson"):
            yield from json_rows(path)
        else:
            for number, line in read_lines(path):
                yield number, {"text": line}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: a directory, not a file") from None


def open_file(path: Path) -> IO[bytes]:
    """A file's bytes, decompressed where its name ends in .gz."""
    return cast(IO[bytes], gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb"))


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 text file, numbered from 1, without the line break.

    Raises:
        InputError: not UTF-8, a NUL byte, an endless line, or damaged gzip.
    """
    with open_file(path) as file:
        for number in itertools.count(1):
            try:
                raw = file.readline(LINE_LIMIT)
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise InputError(f"{path}:{number}: damaged gzip ({error}); fetch or write it again") from None
            if not raw:
                return
            if len(raw) == LINE_LIMIT:
                raise InputError(f"{path}:{number}: a line of more than {LINE_LIMIT:,} bytes; is this a text file?")
            if b"\0" in raw:
                raise InputError(f"{path}:{number}: a NUL byte, so no UTF-8 text; convert it (from UTF-16?) first")
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise InputError(f"{path}:{number}: not UTF-8 ({error.reason} at byte {error.start})") from None


def table_rows(path: Path, suffix: str) -> Iterator[tuple[int, Row]]:
    """The rows of a CSV file (commas, standard quoting) or a TSV file (tabs, no quoting), with a header.

    The STS Benchmark's files have tabs, no header and no quoting, whatever they are called; they are known by a first
    line of at least seven columns with a number in the fifth.
    """
    lines = read_lines(path)
    first = next(lines, None)
    if first is None:
        return
    lines = itertools.chain([first], lines)
    if is_sts_benchmark(first[1]):
        for number, line in lines:
            fields = line.split("\t")
            if line.strip() and len(fields) < 7:
                raise InputError(f"{path}:{number}: {len(fields)} columns, but the STS Benchmark's lines have 7")
            if line.strip():
                yield number, dict(zip(STS_BENCHMARK_COLUMNS, fields, strict=False))
        return
    header: list[str] = []
    for number, fields in split_fields(path, lines, suffix):
        if not header:
            header = [name.strip() for name in fields]
        elif len(fields) != len(header):
            raise InputError(f"{path}:{number}: {len(fields)} columns, but the header has {len(header)}")
        else:
            yield number, dict(zip(header, fields, strict=True))


def is_sts_benchmark(line: str) -> bool:
    """Whether a line looks like the STS Benchmark's: genre, file, year, id, score, sentence1, sentence2."""
    fields = line.split("\t")
    return len(fields) >= 7 and parse_number(fields[4]) is not None


def split_fields(path: Path, lines: Iterable[tuple[int, str]], suffix: str) -> Iterator[tuple[int, list[str]]]:
    """The fields of each line that is not blank, with the line where the record begins."""
    if suffix == ".tsv":
        yield from ((number, line.split("\t")) for number, line in lines if line.strip())
        return
    csv.field_size_limit(LINE_LIMIT)  # an unterminated quote stops here, not at the end of memory
    reader = csv.reader((f"{line}\n" for _, line in lines), strict=True)
    number = 1
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                yield number, fields
            number = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}:{number}: not CSV ({error}); is a quotation mark left open?") from None


def json_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """The rows of a JSON-lines file: an object, a string, a list of strings, or [sentence, sentence, score] a line."""
    for number, line in read_lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if "\\u" in line:
                json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair is JSON, but no text
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}:{number}: not a JSON value in one line of text ({error})") from None
        if isinstance(row, str):
            row = {"text": row}
        elif isinstance(row, list) and len(row) == 3 and not isinstance(row[2], str):
            row = {"sentence1": row[0], "sentence2": row[1], "score": row[2]}
        elif isinstance(row, list):
            row = {f"sentence{index}": value for index, value in enumerate(row, start=1)}
        if not isinstance(row, dict):
            raise InputError(f"{path}:{number}: neither a JSON object nor a list nor a string")
        yield number, row


def parquet_rows(path: Path, columns: list[str] | None = None) -> Iterator[tuple[int, Row]]:
    """The rows of a Parquet file's text and number columns (only `columns`, where given), read piece by piece."""
    with open_file(path) as file, tempfile.TemporaryFile() as plain:
        number = 1
        try:
            if path.name.lower().endswith(".gz"):  # Parquet is read from its end, gzip cannot be
                shutil.copyfileobj(file, plain)
                file = plain
            table = parquet.ParquetFile(file)
            names = [field.name for field in table.schema_arrow if is_plain(field.type)]
            wanted = [name for name in names if not columns or name in columns]
            for batch in table.iter_batches(batch_size=1024, columns=wanted, use_threads=False):
                for row in batch.to_pylist():
                    yield number, row
                    number += 1
        except (pa.ArrowException, OSError, EOFError, ValueError, zlib.error) as error:
            raise InputError(f"{path}: not a Parquet file, or damaged after row {number - 1} ({error})") from None


def is_plain(kind: pa.DataType) -> bool:
    """Whether a column holds texts or numbers."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return any(
        test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_floating)
    )


# Sentences


def read_sentences(source: str) -> Iterator[str]:
    """The sentences of a source, in order, stripped, without empty ones; repetitions stay.

    Without column names every column with a usual name (sentence1, anchor, premise, text, ...) is taken.

    Raises:
        InputError: nothing there, nothing in it, or a row that cannot be read, named by file and line.
    """
    parsed = parse_source(source, default_split="train")
    found = False
    for where, number, row in read_source(parsed):
        names = parsed.columns or text_columns(tuple(row))
        missing = [name for name in names if name not in row]
        if missing or not names:
            what = f"no column {missing[0]!r}" if missing else "no column with a usual name for text"
            listed = ", ".join(itertools.islice(row, 20))
            raise InputError(f"{where}:{number}: {what}; name some of these after a colon: {listed}")
        for name in names:
            sentence = row[name]
            if isinstance(sentence, str):
                sentence = sentence.strip()
                if sentence:
                    found = True
                    yield sentence
            elif sentence is not None and parsed.columns:
                raise InputError(f"{where}:{number}: column {name!r} holds {type(sentence).__name__}, not text")
    if not found:
        raise InputError(f"{source}: no sentences in it")


@lru_cache(maxsize=256)
def text_columns(names: tuple[str, ...]) -> list[str]:
    """The columns that hold text, by their usual names."""
    return [name for name in names if TEXT_COLUMN.match(name)]


# The corpus on disk

BATCH_ROWS = 16_384  # rows of every record batch but the last, so that a row's batch is its index divided by this
GATHER_ROWS = 8 * BATCH_ROWS  # rows brought together in memory at a time when the corpus is written
SCHEMA = pa.schema([("sentence", pa.large_string())])


@dataclass(frozen=True)
class Corpus:
    """Distinct sentences in shuffled order, in a memory-mapped Arrow file: `size` to train on, then the held-out ones.

    `fingerprint` is the SHA-256 of all of them in order and of the split; `counts` says how many of the training
    sentences came from each source.
    """

    path: Path
    size: int
    evaluation_size: int
    fingerprint: str
    counts: dict[str, int]

    def __len__(self) -> int:
        return self.size

    @cached_property
    def file(self) -> pa.RecordBatchFileReader:
        """The open Arrow file."""
        return pa.ipc.open_file(pa.memory_map(str(self.path)))

    def sentences(self, start: int, stop: int) -> list[str]:
        """Training sentences start to stop - 1."""
        return self.take(np.arange(start, stop))

    def take(self, indices: np.ndarray) -> list[str]:
        """The training sentences at `indices` (n,), in their order.

        Raises:
            IndexError: an index outside 0 to size - 1.
        """
        if len(indices) and not 0 <= np.min(indices) <= np.max(indices) < self.size:
            raise IndexError(f"training sentences are numbered 0 to {self.size - 1}")
        return gather(self.file, np.asarray(indices)).to_pylist()

    def evaluation(self) -> list[str]:
        """The held-out sentences."""
        return gather(self.file, np.arange(self.size, self.size + self.evaluation_size)).to_pylist()


def build_corpus(
    directory: Path,
    sources: list[str],
    max_sentences: int | None,
    evaluation_sentences: int,
    seed: int,
    sampling: str = "mixed",
) -> Corpus:
    """Gather the distinct sentences of `sources` in `directory`, shuffled by `seed`, with some held out.

    sampling="mixed" draws both parts at random from all sources together. sampling="in_order" holds out the same
    number from each source and trains on all of the first source, then all of the second, and so on, the last one cut
    at random where `max_sentences` is reached.

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
    directory.mkdir(parents=True, exist_ok=True)
    for stale in directory.glob(".spool.*"):
        stale.unlink()
    key = {
        "sources": [[source, file_stamps(source)] for source in sources],
        "settings": [max_sentences, evaluation_sentences, seed, sampling],
    }
    corpus = finished_corpus(directory, key)
    if corpus is not None:
        return corpus

    with tempfile.NamedTemporaryFile(dir=directory, prefix=".spool.") as spool:
        hashes, starts = write_spool(Path(spool.name), sources)
        distinct = np.flatnonzero(first_occurrences(hashes))
        del hashes
        if len(distinct) < evaluation_sentences + 1:
            raise InputError(
                f"{', '.join(sources)}: {len(distinct):,} distinct sentences, but {evaluation_sentences:,} to hold out "
                "and 1 to train on are needed; add text or lower evaluation_sentences"
            )
        rng = np.random.default_rng(seed)
        training, evaluation = (choose_mixed if sampling == "mixed" else choose_in_order)(
            distinct, starts, max_sentences, evaluation_sentences, rng
        )
        counts = dict.fromkeys(sources, 0)
        for source, start, stop in zip(sources, starts[:-1], starts[1:], strict=True):
            counts[source] += int(np.count_nonzero((training >= start) & (training < stop)))
        path = directory / "sentences.arrow"
        size = len(training)
        with atomic_path(path) as temporary:
            fingerprint = write_corpus(temporary, Path(spool.name), np.concatenate([training, evaluation]), size)
    corpus = Corpus(path, size, len(evaluation), fingerprint, counts)
    manifest = {"size": size, "evaluation_size": len(evaluation), "fingerprint": fingerprint, "counts": counts}
    write_json(directory / "corpus.json", {"key": key, **manifest})
    return corpus


def file_stamps(source: str) -> list[list[Any]]:
    """Name, size and time of change of a source's files; nothing for a Hub dataset, whose name has to do."""
    parsed = parse_source(source, default_split="train")
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


def write_spool(path: Path, sources: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Write every sentence of every source to an Arrow file.

    Returns their 128-bit hashes (n, 2), uint64, and where each source starts, with the end as last (sources + 1,).
    """
    hashes = bytearray()
    starts = [0]
    batch: list[str] = []
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        for source in sources:
            for sentence in read_sentences(source):
                hashes += hashlib.blake2b(sentence.encode(), digest_size=16).digest()
                batch.append(sentence)
                if len(batch) == BATCH_ROWS:
                    writer.write_batch(pa.record_batch([pa.array(batch, pa.large_string())], schema=SCHEMA))
                    batch.clear()
            starts.append(len(hashes) // 16)
        if batch:
            writer.write_batch(pa.record_batch([pa.array(batch, pa.large_string())], schema=SCHEMA))
    return np.frombuffer(hashes, np.uint64).reshape(-1, 2), np.array(starts)


def first_occurrences(hashes: np.ndarray) -> np.ndarray:
    """Which rows of `hashes` (n, 2) are the first of their value: (n,) bool.

    Sixteen times a sixteenth of the values, so that sorting needs little memory beside the hashes themselves.
    """
    first = np.zeros(len(hashes), dtype=bool)
    part = (hashes[:, 0] >> np.uint64(60)).astype(np.uint8)
    for value in range(16):
        rows = np.flatnonzero(part == value)
        high, low = hashes[rows, 0], hashes[rows, 1]
        order = np.lexsort((low, high))  # stable: equal values stay in the order in which they appear
        high, low = high[order], low[order]
        new = np.ones(len(rows), dtype=bool)
        new[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
        first[rows[order[new]]] = True
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
    """Evaluation rows from every source alike; training rows from the first source, then the next, until enough."""
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
            sentences = gather(source, rows[start : start + GATHER_ROWS])
            for offset in range(0, len(sentences), BATCH_ROWS):
                batch = pa.record_batch([sentences[offset : offset + BATCH_ROWS]], schema=SCHEMA)
                writer.write_batch(batch)
                yield batch

    with pa.memory_map(str(spool)) as mapped, pa.OSFile(str(path), "wb") as sink:
        source = pa.ipc.open_file(mapped)
        with pa.ipc.new_file(sink, SCHEMA) as writer:
            return fingerprint_of(batches(), size)


def gather(file: pa.RecordBatchFileReader, rows: np.ndarray) -> pa.Array:
    """The sentences at `rows` of an Arrow file in batches of BATCH_ROWS, in the order of `rows`."""
    order = np.argsort(rows, kind="stable")
    ascending = rows[order]
    ends = np.append(np.flatnonzero(np.diff(ascending // BATCH_ROWS)) + 1, len(rows))
    pieces, start = [pa.array([], pa.large_string())], 0
    for end in ends[ends > 0]:
        batch = file.get_batch(int(ascending[start]) // BATCH_ROWS)
        pieces.append(batch.column(0).take(pa.array(ascending[start:end] % BATCH_ROWS)))
        start = end
    return pa.concat_arrays(pieces).take(pa.array(np.argsort(order, kind="stable")))


def fingerprint_of(batches: Iterable[pa.RecordBatch], size: int) -> str:
    """SHA-256 over the sentences' lengths and bytes, batch by batch, and over where training ends, in hexadecimal."""
    digest = hashlib.sha256()
    for batch in batches:
        batch.validate()
        column = batch.column(0)
        _, offsets, data = column.buffers()
        offsets = np.frombuffer(offsets, np.int64)[column.offset : column.offset + len(column) + 1]
        digest.update(np.diff(offsets).tobytes())
        digest.update(memoryview(data)[offsets[0] : offsets[-1]])
    digest.update(str(size).encode())
    return digest.hexdigest()


# Judgements of similarity


@dataclass(frozen=True)
class StsPairs:
    """Pairs of sentences and how similar people find them: `scores` (n,), float64, in whatever unit the set has."""

    name: str
    sentences1: list[str]
    sentences2: list[str]
    scores: np.ndarray


def read_sts(name: str, source: str) -> StsPairs:
    """Read similarity judgements: the STS Benchmark's own files, or CSV, TSV, JSON lines, Parquet or a Hub dataset.

    The columns are sentence1 (or text1), sentence2 (text2) and score (similarity_score, label), or the three that the
    source names. A Hub dataset's default split is test.

    Raises:
        InputError: a missing column or a score that is no finite number, by file and line; fewer than two pairs; scores
            that are all the same, for which no correlation exists.
    """
    parsed = parse_source(source, default_split="test")
    if parsed.columns and len(parsed.columns) != 3:
        raise InputError(f"{source}: name three columns, sentence1,sentence2,score, or none")
    choices = [(column,) for column in parsed.columns] or STS_COLUMNS
    columns: tuple[list[Any], ...] = ([], [], [])
    for where, number, row in read_source(parsed):
        for column, names in zip(columns, choices, strict=True):
            found = [name for name in names if name in row]
            if not found:
                listed = ", ".join(itertools.islice(row, 20))
                raise InputError(f"{where}:{number}: no column {' or '.join(names)}; there are: {listed}")
            column.append(row[found[0]])
        sentence1, sentence2, score = columns[0][-1], columns[1][-1], parse_number(columns[2][-1])
        if not isinstance(sentence1, str) or not isinstance(sentence2, str):
            raise InputError(f"{where}:{number}: a sentence is {sentence1!r:.80} or {sentence2!r:.80}, not text")
        if score is None:
            raise InputError(f"{where}:{number}: score {columns[2][-1]!r:.80} is not a finite number")
        columns[2][-1] = score
    scores = np.array(columns[2], dtype=np.float64)
    if len(scores) < 2:
        raise InputError(f"{source}: {len(scores)} pairs; a correlation needs two or more")
    if np.ptp(scores) == 0:
        raise InputError(f"{source}: every score is {scores[0]:g}, so no correlation exists")
    return StsPairs(name, [text.strip() for text in columns[0]], [text.strip() for text in columns[1]], scores)


def parse_number(value: Any) -> float | None:
    """A finite number from a number or its text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int | float) or "_" in str(value):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


# Judgements of relevance


@dataclass(frozen=True)
class RetrievalSet:
    """Queries, documents, and for each query the indices of the documents that answer it (one or more)."""

    name: str
    queries: list[str]
    documents: list[str]
    relevant: list[set[int]]


def read_retrieval(name: str, source: str) -> RetrievalSet:
    """Read a retrieval set.

    `source` is one of
    - a directory with queries, documents (or corpus) and relevance (or qrels): .txt or .jsonl, and .tsv
    - the three files, as QUERIES,DOCUMENTS,RELEVANCE
    - parallel:FILE1,FILE2,...: line i of every text file is about the same thing. The first file's lines are the
      queries, all the others' are the documents, and line i answers line i.

    JSON lines have text (title too, and _id, as in BEIR: Thakur et al. 2021, arXiv:2104.08663); in a text file a line's
    id is its number from 0. A relevance line is query id, document id and, if any, a grade, of which 0 means not
    relevant. Queries without a relevant document are left out.

    Raises:
        InputError: by file and line: a file missing or damaged, an id twice or unknown, an empty query.
    """
    if source.startswith("parallel:"):
        return read_parallel(name, source)
    paths = source.split(",") if not os.path.isdir(source) else [
        find_file(source, ["queries"], [".jsonl", ".txt"]),
        find_file(source, ["documents", "corpus"], [".jsonl", ".txt"]),
        find_file(source, ["relevance", "qrels", "qrels/test"], [".tsv"]),
    ]  # fmt: skip
    if len(paths) != 3:
        raise InputError(f"{source}: neither a directory nor QUERIES,DOCUMENTS,RELEVANCE nor parallel:FILE1,FILE2")
    queries, documents = read_texts(Path(paths[0])), read_texts(Path(paths[1]))
    for index, text in enumerate(queries.values()):
        if not text:
            raise InputError(f"{paths[0]}: query {index + 1} is empty")
    query_index = {identity: index for index, identity in enumerate(queries)}
    document_index = {identity: index for index, identity in enumerate(documents)}
    relevant: list[set[int]] = [set() for _ in queries]
    for query, document in read_relevance(Path(paths[2]), query_index, document_index):
        relevant[query].add(document)
    texts = list(queries.values())
    kept = [index for index in range(len(texts)) if relevant[index]]
    if not kept:
        raise InputError(f"{paths[2]}: no query has a relevant document")
    return RetrievalSet(
        name, [texts[index] for index in kept], list(documents.values()), [relevant[index] for index in kept]
    )


def read_parallel(name: str, source: str) -> RetrievalSet:
    """Read parallel:FILE1,FILE2,...; see `read_retrieval`."""
    paths = [Path(path) for path in source.removeprefix("parallel:").split(",")]
    if len(paths) < 2:
        raise InputError(f"{source}: parallel: takes two or more files with commas between them")
    columns = [list(read_texts(path).values()) for path in paths]
    for path, column in zip(paths, columns, strict=True):
        if len(column) != len(columns[0]):
            raise InputError(f"{path}: {len(column)} lines, but {paths[0]} has {len(columns[0])}")
        if "" in column:
            raise InputError(f"{path}:{column.index('') + 1}: an empty line")
    if not columns[0]:
        raise InputError(f"{paths[0]}: no lines in it")
    count = len(columns[0])
    relevant = [{index + count * file for file in range(len(paths) - 1)} for index in range(count)]
    return RetrievalSet(name, columns[0], list(itertools.chain(*columns[1:])), relevant)


def find_file(directory: str, names: list[str], suffixes: list[str]) -> str:
    """The first of the files `names` with one of `suffixes`, gzip or not, in a directory."""
    for name, suffix, gz in itertools.product(names, suffixes, ["", ".gz"]):
        if os.path.isfile(f"{directory}/{name}{suffix}{gz}"):
            return f"{directory}/{name}{suffix}{gz}"
    raise InputError(f"{directory}: no {' or '.join(names)} with the ending {' or '.join(suffixes)}")


def read_texts(path: Path) -> dict[str, str]:
    """Texts by id: `_id` or `id` where the file has them, else the line's number from 0."""
    texts: dict[str, str] = {}
    for number, row in read_rows(path):
        title, text = row.get("title") or "", row.get("text")
        if not isinstance(title, str) or not isinstance(text, str):
            raise InputError(f"{path}:{number}: no text in it")
        identity = str(row.get("_id", row.get("id", number - 1)))
        if identity in texts:
            raise InputError(f"{path}:{number}: the id {identity:.80} is there twice")
        texts[identity] = f"{title.strip()} {text.strip()}".strip()
    return texts


def read_relevance(
    path: Path, query_index: dict[str, int], document_index: dict[str, int]
) -> Iterator[tuple[int, int]]:  # fmt: skip
    """The (query, document) indices that a relevance file calls relevant; a header is skipped."""
    try:
        for number, line in read_lines(path):
            fields = [field.strip() for field in line.split("\t")]
            if not line.strip() or (number == 1 and re.match(r"query[-_ ]?(id|index)?$", fields[0], re.IGNORECASE)):
                continue
            grade = parse_number(fields[2]) if len(fields) == 3 else 1.0
            if len(fields) not in (2, 3) or grade is None:
                raise InputError(f"{path}:{number}: not a query, a document and, if any, a grade, with tabs between")
            if fields[0] not in query_index:
                raise InputError(f"{path}:{number}: no query {fields[0]:.80}")
            if fields[1] not in document_index:
                raise InputError(f"{path}:{number}: no document {fields[1]:.80}")
            if grade > 0:
                yield query_index[fields[0]], document_index[fields[1]]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
