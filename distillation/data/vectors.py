"""A teacher known only by its vectors: texts with their embeddings, as an index or an API gives them.

A source is one of

    vectors.parquet:text,embedding     vectors.jsonl:text,embedding
    vectors.npy:texts.txt              row i of the array is the vector of line i

and the vectors may have any number of dimensions. They are copied once into one array on disk, which is memory-mapped
from then on: an index of any size fits.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from safetensors import SafetensorError, safe_open

from shortstack.distillation.data.on_disk import FirstRows, mapped, on_disk, spool_in
from shortstack.distillation.data.sources import (
    LONGEST,
    TABLES,
    is_text,
    json_rows,
    open_parquet,
    parquet_batches,
    read_lines,
    suffix_of,
)
from shortstack.model.files import InputError, first_line, make_directory

ROWS = 1024  # texts read at a time
UNIT = 1e-2  # how far the length of a normalised vector may be from 1: some are stored in half precision

Batch = tuple[list[str], np.ndarray]  # some texts and their vectors, (b, d) float32


@dataclass(frozen=True)
class TeacherVectors:
    """n texts' vectors on disk.

    Attributes:
        vectors: (n, d) float32, memory-mapped.
        fingerprint: SHA-256 over all texts and vectors, in hexadecimal.
        keys, rows: (n,) each, memory-mapped: for every text a number, ascending, and the row of its vector.
    """

    vectors: np.ndarray
    fingerprint: str
    keys: np.ndarray
    rows: np.ndarray

    @classmethod
    def read(cls, sources: Sequence[str], directory: Path) -> "TeacherVectors":
        """Copy the vectors of all sources into one file, which is deleted when this process ends.

        Args:
            sources: in the form described at the top of this file, all of one teacher.
            directory: where the file goes.

        Raises:
            InputError: a file that is missing or can't be read, vectors with different dimensions, or a
                vector that is zero or not finite.
        """
        digest = hashlib.sha256()
        dimensions = 0
        make_directory(directory)
        with spool_in(directory) as file, spool_in(directory) as hashes:
            first = FirstRows(hashes)  # if a text occurs twice, its first row counts
            for source in sources:
                for texts, vectors in read_vectors(source):
                    dimensions = dimensions or vectors.shape[1]
                    check_vectors(vectors, dimensions, source, texts)
                    keys = keys_of(texts)
                    first.add(np.column_stack([keys, np.zeros_like(keys)]).tobytes())
                    digest.update("\0".join(texts).encode("utf-8", "replace"))
                    digest.update(vectors.tobytes())
                    file.write(vectors.tobytes())
            if not first.rows:
                raise InputError(f"{', '.join(sources)}: no vectors in it")
            found_keys = on_disk(directory, (found[0] for found in first.merged()), np.uint64)
            found_rows = on_disk(directory, (found[2] for found in first.merged()))
            vectors = mapped(file, np.float32).reshape(-1, dimensions)
        return cls(vectors, digest.hexdigest(), found_keys, found_rows)

    @property
    def dimensions(self) -> int:
        return self.vectors.shape[1]

    def of(self, texts: Sequence[str]) -> np.ndarray:
        """The vectors of these texts, all of which must have been read: (b, d) float32."""
        places = np.searchsorted(self.keys, wanted := keys_of(texts))
        assert (self.keys[places.clip(max=len(self.keys) - 1)] == wanted).all(), "a text has no vector"
        return np.asarray(self.vectors[self.rows[places]])

    def are_normalised(self) -> bool:
        """Whether the vectors have length 1, by a sample."""
        indices = np.linspace(0, len(self.vectors) - 1, min(1000, len(self.vectors))).astype(int)
        return bool((np.abs(np.linalg.norm(self.vectors[indices], axis=1) - 1) < UNIT).all())


def text_source(source: str) -> str:
    """The source of only the texts, in the form in which recipes name text to train on."""
    path, _, second = source.rpartition(":")
    return second if path.endswith(".npy") else f"{path}:{second.split(',')[0]}"


def read_vectors(source: str) -> Iterator[Batch]:
    """The texts of a source with their vectors, piece by piece, in order. Texts are stripped.

    Raises:
        InputError: a file that is missing or can't be read, or no such column.
    """
    path, _, second = source.rpartition(":")
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{source}: no such file; write FILE:TEXT_COLUMN,VECTOR_COLUMN, or VECTORS.npy:TEXTS.txt")
    try:
        if file.suffix == ".npy":
            yield from _npy(file, Path(second))
            return
        columns = second.split(",")
        if len(columns) != 2:
            raise InputError(f"{source}: name the columns of texts and of vectors, as in {path}:text,embedding")
        if file.suffix == ".parquet":
            yield from _parquet(file, columns)
        else:
            yield from _json(file, columns)
    except (pa.ArrowException, ValueError, TypeError, KeyError, OSError, EOFError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{source}: can't be read as texts with vectors ({first_line(error)})") from None


def _npy(file: Path, texts: Path) -> Iterator[Batch]:
    vectors = np.load(file, mmap_mode="r", allow_pickle=False)
    if vectors.ndim != 2:
        raise InputError(f"{file}: an array of shape {vectors.shape}; vectors are (texts, dimensions)")
    if suffix_of(texts) in TABLES:
        raise InputError(f"{texts}: beside an array texts are lines of plain text; write them as a .txt file")
    lines = (text.strip() for _, text in read_lines(texts))
    start = 0
    while part := [text for _, text in zip(range(ROWS), lines, strict=False)]:
        block = np.asarray(vectors[start : start + len(part)], np.float32)
        start += len(part)
        if start > len(vectors):
            raise InputError(f"{texts}: has more lines than {file} has rows, {len(vectors):,}")
        yield part, block
    if start < len(vectors):
        raise InputError(f"{texts}: has {start:,} lines, {file} has {len(vectors):,} rows")


def _parquet(file: Path, columns: list[str]) -> Iterator[Batch]:
    opened = open_parquet(file)
    names = opened.schema_arrow.names
    missing = [name for name in columns if name not in names]
    if missing:
        raise InputError(f"{file}: no column {missing[0]!r}; there are: {', '.join(names)}")
    for batch in parquet_batches(opened, columns, ROWS):
        texts, lists = (batch.column(batch.schema.names.index(name)) for name in columns)
        if not is_text(texts.type.value_type if pa.types.is_dictionary(texts.type) else texts.type):
            raise InputError(f"{file}: column {columns[0]!r} holds {texts.type}, not texts")
        if texts.null_count:
            raise InputError(f"{file}: a row without a text; leave it out")
        if len(texts):
            yield [text.strip() for text in texts.to_pylist()], _rows_of(lists, f"{file}: column {columns[1]!r}")


def _rows_of(lists: pa.Array, where: str) -> np.ndarray:
    """A column of lists as (b, d) float32; b at least 1."""
    if not is_vectors(lists.type):
        raise InputError(f"{where} holds {lists.type}, not lists of numbers")
    if lists.null_count:
        raise InputError(f"{where} has a row without a vector; leave it out")
    if len(set(pc.list_value_length(lists).to_pylist())) > 1:
        raise InputError(f"{where} has vectors of different lengths")
    flat = lists.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(lists), -1).astype(np.float32)


def is_vectors(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold vectors."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _json(file: Path, columns: Sequence[str]) -> Iterator[Batch]:
    texts: list[str] = []
    vectors: list[np.ndarray] = []
    for number, row in json_rows(file):
        text, vector = (row.get(name) for name in columns)
        if not isinstance(text, str) or not isinstance(vector, list) or not vector:
            raise InputError(f"{file}:{number}: no text in {columns[0]!r}, or no vector in {columns[1]!r}")
        if vectors and len(vector) != len(vectors[0]):
            raise InputError(f"{file}:{number}: a vector of {len(vector)} numbers, after one of {len(vectors[0])}")
        texts.append(text.strip())
        vectors.append(np.array(vector, np.float32))
        if vectors[-1].ndim != 1:
            raise InputError(f"{file}:{number}: {columns[1]!r} is a list of lists, not one vector")
        if len(texts) == ROWS:
            yield texts, np.stack(vectors)
            texts, vectors = [], []
    if texts:
        yield texts, np.stack(vectors)


def check_vectors(vectors: np.ndarray, dimensions: int, source: str, texts: Sequence[str]) -> None:
    """Refuse vectors that no teacher can have given.

    Raises:
        InputError: names the text.
    """
    if vectors.shape[1] != dimensions:
        raise InputError(f"{source}: vectors of {vectors.shape[1]} dimensions after others of {dimensions}")
    norms = np.linalg.norm(vectors, axis=1)
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
    if len(bad):
        raise InputError(f"{source}: the vector of {texts[int(bad[0])][:60]!r} is zero or not finite; leave it out")


def keys_of(texts: Iterable[str]) -> np.ndarray:
    """A 64-bit number for each text, under which its vector is looked up: (b,) uint64."""
    texts = (text[:LONGEST] for text in texts)  # as the corpus keeps them
    digests = (hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest() for text in texts)
    return np.frombuffer(b"".join(digests), np.uint64)


# -- an index whose texts are elsewhere ------------------------------------------------------------------------------


class StoredRows:
    """The rows of a matrix in a safetensors file, read when they are asked for; as much of an array as is needed."""

    def __init__(self, file: Path) -> None:
        self._file = safe_open(file, "pt")  # torch, since numpy has no bfloat16
        matrices = [name for name in self._file.keys() if len(self._file.get_slice(name).get_shape()) == 2]  # noqa: SIM118
        if len(matrices) != 1:
            raise InputError(f"{file}: {len(matrices)} matrices in it; an index is one, (texts, dimensions)")
        self._rows = self._file.get_slice(matrices[0])
        self.shape: tuple[int, ...] = tuple(self._rows.get_shape())

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, where: slice) -> np.ndarray:
        return np.asarray(self._rows[where].float().numpy())


def open_vectors(source: str, directory: Path) -> np.ndarray | StoredRows:
    """The vectors of an index: (n, d), of which only the rows in use are in memory.

    Args:
        source: a .npy, .safetensors or .parquet file, or a source as at the top of this file.
        directory: where there is room for a copy of a compressed file; the copy is gone when this process ends.

    Raises:
        InputError: a file that is missing or can't be read, or with no vectors in it.
    """
    file = Path(source)
    if not file.is_file():
        return TeacherVectors.read([source], directory).vectors
    try:
        if file.suffix == ".safetensors":
            return StoredRows(file)
        if file.suffix == ".parquet":
            return _copied(file, directory)
        vectors = np.load(file, mmap_mode="r", allow_pickle=False)
    except (pa.ArrowException, SafetensorError, ValueError, OSError, EOFError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{source}: can't be read as .npy, .safetensors or .parquet ({first_line(error)})") from None
    if getattr(vectors, "ndim", 0) != 2 or not len(vectors):
        raise InputError(f"{source}: no array of (texts, dimensions)")
    return vectors


def _copied(file: Path, directory: Path) -> np.ndarray:
    """The only column of vectors in a Parquet file as an array on disk."""
    opened = open_parquet(file)
    names = [field.name for field in opened.schema_arrow if is_vectors(field.type)]
    if len(names) != 1 or not opened.metadata.num_rows:
        raise InputError(f"{file}: {len(names)} columns of vectors; name one, as in {file}:text,embedding")
    make_directory(directory)
    dimensions = 0
    with spool_in(directory) as copy:
        for batch in parquet_batches(opened, names, ROWS):
            rows = _rows_of(batch.column(0), f"{file}: column {names[0]!r}")
            dimensions = dimensions or rows.shape[1]
            if rows.shape[1] != dimensions:
                raise InputError(f"{file}: vectors of {rows.shape[1]} dimensions after others of {dimensions}")
            copy.write(rows.tobytes())
        return mapped(copy, np.float32).reshape(-1, dimensions)
