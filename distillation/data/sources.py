"""Rows out of files and datasets: text lines, CSV, TSV, JSON lines, Parquet, gzip of these, and the Hub, all streamed.

A source is a file, a glob, a directory or a Hub dataset, and may name its parts:

    captions.txt    'captions/*.en.gz'    pairs.csv:premise,hypothesis    news.jsonl:text    wiki.parquet
    sentence-transformers/all-nli:pair-score:train:sentence1,sentence2

Text to train on may have marks before it, with commas between them and an @ after the last:

    query@questions.txt    document,passages@'docs/**/*.md'    20000@wiki.parquet

query or document: which of the teacher's prompts goes before the texts; without either, the default one.
passages or lines: how texts are cut; see passages.py. A number: at most this many texts, drawn at random.
"""

import csv
import glob
import gzip
import itertools
import json
import math
import os
import re
import shutil
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as parquet

from shortstack.distillation.data.documents import DOCUMENTS, PDF, pdf_lines
from shortstack.model.files import InputError
from shortstack.model.hub import looks_like_a_path

Row = dict[str, Any]
LINE_LIMIT = 2**24  # bytes; a longer line is not text, and the limit bounds the memory that a corrupt file can ask for
LONGEST = 2**16  # characters of a text that are kept: more than any encoder's 8,192 tokens
PARQUET_BYTES = 2**25  # of rows that are read together
TABLES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".arrow")
DATA_SUFFIXES = (".txt", *TABLES, *DOCUMENTS, PDF, ".gz")
DATASET_FILES = ("dataset_info.json", "dataset_dict.json", "dataset_infos.json", "state.json")
STS_BENCHMARK_COLUMNS = ["genre", "file", "year", "id", "score", "sentence1", "sentence2"]


MARK = r"(?:query|document|passages|lines|[1-9]\d*)"


@dataclass(frozen=True)
class Marks:
    """The marks before the @ of a source.

    Attributes:
        role: query, document or "".
        reading: passages, lines or "", which is passages for documents and lines for all else.
        limit: the largest number of texts to read, or None for all.
    """

    role: str = ""
    reading: str = ""
    limit: int | None = None


def split_marks(source: str) -> tuple[Marks, str]:
    """A source's marks, and the source without them. A path that exists is never read as marks.

    Raises:
        InputError: two marks of one kind.
    """
    match = re.fullmatch(rf"({MARK}(?:,{MARK})*)@(.+)", source)
    if match is None or os.path.exists(source):
        return Marks(), source
    marks = match[1].split(",")
    kinds = [
        [mark for mark in marks if mark in ("query", "document")],
        [mark for mark in marks if mark in ("passages", "lines")],
        [mark for mark in marks if mark.isdigit()],
    ]
    if any(len(kind) > 1 for kind in kinds):
        raise InputError(f"{source}: two marks of one kind before the @; choose one")
    role, reading, limit = ((kind or [""])[0] for kind in kinds)
    return Marks(role, reading, int(limit) if limit else None), match[2]


def with_reading(source: str, reading: str) -> str:
    """A source with this reading mark, unless it already has one or the mark is empty."""
    marks, plain = split_marks(source)
    if marks.reading or not reading:
        return source
    return f"{reading}@{source}" if plain == source else f"{reading},{source}"


@dataclass(frozen=True)
class Source:
    """Where rows come from: files, or a dataset (a Hub name or a local directory) with its config and split."""

    files: list[Path]
    dataset: str
    config: str
    split: str
    columns: list[str]
    optional: tuple[str, ...] = ()  # columns that are read too, where columns are named and these are there


def parse_source(source: str, default_split: str) -> Source:
    """Read a source: PATH[:COLUMN,...] for a file or a glob, NAME[:CONFIG[:SPLIT[:COLUMN,...]]] for a dataset.

    A path that exists is preferred to a Hub name, even if it contains colons. Empty parts stand for the default.

    Raises:
        InputError: no such file, a glob without a match, or too many parts.
    """
    parts = source.split(":")
    for count in range(len(parts), 0, -1):
        path, rest = ":".join(parts[:count]), parts[count:]
        files = [path] if os.path.isfile(path) else []
        if not files and re.search(r"[*?\[]", path) and "\0" not in path:
            matches = sorted(glob.glob(path, recursive=True), reverse=True)
            unique = {os.path.realpath(match): match for match in matches}  # a file once, however many links to it
            files = sorted(match for match in unique.values() if os.path.isfile(match))
        if files:
            if len(rest) > 1:
                raise InputError(f"{source}: a file takes column names only, as in {path}:sentence1,sentence2")
            return Source([Path(file) for file in files], "", "", "", split_columns(rest[0] if rest else ""))
        if os.path.isdir(path):
            documents, _ = documents_in(Path(path))
            if documents and not rest:
                return Source(documents, "", "", "", [])
            parts = [path, *rest]
            break
    name = parts[0]
    if os.path.exists(name) and not os.path.isdir(name):
        raise InputError(f"{source}: a pipe or device, which can't be read twice; write its text to a file first")
    if re.search(r"[*?\[]", name):
        raise InputError(f"{source}: no file matches")
    is_hub_name = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and not looks_like_a_path(name)
    if not os.path.isdir(name) and (name.lower().endswith(DATA_SUFFIXES) or not is_hub_name):
        hint = "; fetch it with: shortstack prepare" if name.startswith("assets/") else ""
        raise InputError(f"{source}: no such file{hint}")
    if len(parts) > 4:
        raise InputError(f"{source}: a dataset takes NAME:CONFIG:SPLIT:COLUMN,COLUMN at most")
    config, split, columns = (*parts[1:], "", "", "")[:3]
    return Source([], name, config, split or default_split, split_columns(columns))


def marked_source(source: str) -> tuple[Marks, Source]:
    """A source of text to train on: its marks, and what stands after them."""
    marks, plain = split_marks(source)
    return marks, parse_source(plain, default_split="train")


def documents_in(directory: Path) -> tuple[list[Path], list[Path]]:
    """The documents and plain text files below a directory, by name, and all its other files.

    Hidden files are skipped, and links to directories are not followed. Sphinx's _sources, a copy of the text of its
    pages, are no documents. A dataset has none.
    """
    files = sorted(path for path in directory.rglob("[!.]*") if path.is_file())
    files = [path for path in files if not any(part.startswith(".") for part in path.relative_to(directory).parts)]
    if is_dataset(files):
        return [], files
    read = [path for path in files if suffix_of(path) in (*DOCUMENTS, PDF, ".txt")]
    read = [path for path in read if "_sources" not in path.relative_to(directory).parts]
    kept = set(read)
    return read, [path for path in files if path not in kept]


def is_dataset(files: Sequence[Path]) -> bool:
    """Whether a directory's files are a dataset: as `datasets` saves one, or tables with nothing to read beside them
    but a README and a LICENSE.

    A table among documents or plain text, such as a package.json, makes no dataset of them.
    """
    if any(path.name in DATASET_FILES for path in files):
        return True
    suffixes = {suffix_of(path) for path in files}
    texts = [path for path in files if suffix_of(path) in (*DOCUMENTS, PDF, ".txt")]
    if any(path.stem.lower() not in ("readme", "license") for path in texts):
        return False
    return bool(suffixes & set(TABLES) - ({".json"} if suffixes & set(DOCUMENTS) else set()))


def what_is_read(source: str) -> str:
    """What a directory of documents gives, in words; "" for any other source."""
    directory = split_marks(source)[1]
    read, others = documents_in(Path(directory)) if os.path.isdir(directory) else ([], [])
    counts = [Counter(map(ending_of, paths)).most_common() for paths in (read, others)]
    kinds, left_out = (", ".join(f"{count} {suffix}" for suffix, count in endings) for endings in counts)
    return f"{directory}: {len(read)} files read ({kinds}); left out: {left_out or 'none'}" if read else ""


def ending_of(path: Path) -> str:
    """A file's ending as it can be printed: names of files need not be UTF-8."""
    return suffix_of(path).encode(errors="replace").decode() or "no ending"


def split_columns(text: str) -> list[str]:
    """'a,b' as ['a', 'b']."""
    return [column for column in text.split(",") if column]


def read_source(source: Source) -> Iterator[tuple[str, int, Row]]:
    """Every row of a source with where it is: the file's or dataset's name and the line's or row's number from 1."""
    if source.dataset:
        for number, row in read_dataset(source):
            yield source.dataset, number, row
    for path in source.files:
        for number, row in read_rows(path, source.columns, source.optional):
            yield str(path), number, row


def read_dataset(source: Source) -> Iterator[tuple[int, Row]]:
    """The rows of a Hub dataset or a local dataset directory, streamed; no code from the dataset is run.

    Raises:
        InputError: it cannot be reached or read.
    """
    from datasets import load_dataset  # here: the import takes seconds, and local files don't need it

    try:
        rows = load_dataset(source.dataset, source.config or None, split=source.split, streaming=True)
        present = rows.column_names or []
        if source.columns and set(source.columns) <= set(present):
            optional = [name for name in source.optional if name in present and name not in source.columns]
            rows = rows.select_columns([*source.columns, *optional])  # Parquet then reads only these
        yield from enumerate(rows, start=1)
    except Exception as error:  # the library and those below it raise too many kinds to name
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        what = "directory" if os.path.isdir(source.dataset) else "no such file here, and the Hub dataset of this name"
        raise InputError(
            f"{source.dataset}: {what} (config {source.config or 'default'}, split {source.split}) cannot be read "
            f"({reason}); check name and network, or pass local files"
        ) from None


def read_rows(
    path: Path, columns: Sequence[str] = (), optional: Sequence[str] = ()
) -> Iterator[tuple[int, Row]]:  # fmt: skip
    """The rows of one file by its name's ending, gzip or not; a text file's rows have one column, `text`.

    Of Parquet only `columns` are read, where given, and those of `optional` that are there.

    Raises:
        InputError: the file is missing, corrupt or not UTF-8, with its line.
    """
    suffix = suffix_of(path)
    try:
        if suffix == ".parquet":
            yield from parquet_rows(path, columns, optional)
        elif suffix in (".csv", ".tsv"):
            yield from table_rows(path, suffix)
        elif suffix in (".json", ".jsonl", ".ndjson"):
            yield from json_rows(path)
        else:
            for number, line in (pdf_lines if suffix == PDF else read_lines)(path):
                yield number, {"text": line}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: a directory, not a file") from None


def suffix_of(path: Path) -> str:
    """The ending that says what a file holds, in lower case; an ending .gz is skipped."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def open_file(path: Path) -> IO[bytes]:
    """A file's bytes, decompressed where its name ends in .gz."""
    return cast(IO[bytes], gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb"))


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 text file, numbered from 1, without the line break.

    Raises:
        InputError: not UTF-8, a NUL byte, an endless line, or corrupt gzip.
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
            if number == 1 and b"\r" in raw.rstrip(b"\r") and not raw.endswith(b"\n"):
                raise InputError(f"{path}: lines end in carriage returns alone; convert them to line feeds first")
            if b"\0" in raw:
                raise InputError(f"{path}:{number}: a NUL byte, so no UTF-8 text; convert it (from UTF-16?) first")
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise InputError(f"{path}:{number}: not UTF-8 ({error.reason} at byte {error.start})") from None


def table_rows(path: Path, suffix: str) -> Iterator[tuple[int, Row]]:
    """The rows of a CSV file (commas, standard quoting) or a TSV file (tabs, no quoting), with a header.

    The STS Benchmark's files have tabs, no header and no quoting, whatever they are called; they are recognised by a
    first line of at least seven columns with a number in the fifth.
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
            if len(set(header)) < len(header):
                twice = next(name for name in header if header.count(name) > 1)
                raise InputError(f"{path}:{number}: the column {twice!r} is there twice; rename one")
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
        elif isinstance(row, list) and any(isinstance(value, dict) for value in row):
            raise InputError(f"{path}:{number}: an array of objects; write each object on a line of its own")
        elif isinstance(row, list):
            row = {f"sentence{index}": value for index, value in enumerate(row, start=1)}
        if not isinstance(row, dict):
            raise InputError(f"{path}:{number}: neither a JSON object nor a list nor a string")
        yield number, row


def parquet_rows(
    path: Path, columns: Sequence[str] = (), optional: Sequence[str] = ()
) -> Iterator[tuple[int, Row]]:  # fmt: skip
    """The rows of a Parquet file's text and number columns, read piece by piece; see `read_rows`.

    In memory are the rows of a batch, and a page of each column: 1 MB as writers make them, or a single long row.

    Raises:
        InputError: no Parquet file, or without one of `columns`.
    """
    with open_file(path) as file, tempfile.TemporaryFile() as plain:
        number = 1
        try:
            if path.name.lower().endswith(".gz"):  # Parquet is read from its end, gzip cannot be
                shutil.copyfileobj(file, plain)
                file = plain
            table = open_parquet(file)
            names = [field.name for field in table.schema_arrow if is_plain(field.type)]
            missing = [name for name in columns if name not in names]
            if missing:  # said here: whoever reads the rows sees only the columns that were asked for
                listed = ", ".join(names[:20])
                raise InputError(f"{path}: no column {missing[0]!r}; name some of these after a colon: {listed}")
            wanted = [name for name in names if not columns or name in (*columns, *optional)]
            for batch in parquet_batches(table, wanted):
                for column in batch.columns:
                    if is_text(column.type) and (pc.max(pc.binary_length(column)).as_py() or 0) >= LINE_LIMIT:
                        raise InputError(f"{path}: after row {number - 1} a text of more than {LINE_LIMIT:,} bytes")
                for row in batch.to_pylist():
                    yield number, row
                    number += 1
        except InputError:
            raise
        except (pa.ArrowException, OSError, EOFError, ValueError, zlib.error) as error:
            raise InputError(f"{path}: not a Parquet file, or damaged after row {number - 1} ({error})") from None


def open_parquet(file: Path | IO[bytes]) -> parquet.ParquetFile:
    """Open a Parquet file; without a buffer, a column of a row group would be read at once, of any number of rows."""
    return parquet.ParquetFile(file, buffer_size=2**20, pre_buffer=False)


def parquet_batches(table: parquet.ParquetFile, columns: list[str], most: int = 1024) -> Iterator[pa.RecordBatch]:
    """Rows of about PARQUET_BYTES together by what the file says of itself, and no more than `most`."""
    groups = (table.metadata.row_group(index) for index in range(table.metadata.num_row_groups))
    longest = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=0)
    rows = max(1, min(most, PARQUET_BYTES // max(1, longest)))
    yield from table.iter_batches(batch_size=rows, columns=columns, use_threads=False)


def is_plain(kind: pa.DataType) -> bool:
    """Whether a column holds texts or numbers."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return is_text(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def parse_number(value: Any) -> float | None:
    """A finite number from a number or its text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int | float) or "_" in str(value):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
