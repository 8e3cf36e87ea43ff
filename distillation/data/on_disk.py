"""What grows with the number of sentences is kept on disk: arrays in mapped files, and the search for equal hashes.

The memory of a mapped file belongs to the system, which takes it back as soon as it is needed elsewhere.
"""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

RUN = 2**20  # rows in memory at a time


def spool_in(directory: Path) -> IO[bytes]:
    """A file without a name, to write and read; where the system can't make one, its name is removed at once."""
    return tempfile.TemporaryFile(dir=directory, prefix=".spool.")


def on_disk(directory: Path, arrays: Iterable[np.ndarray], kind: type = np.int64) -> np.ndarray:
    """Arrays of this kind end to end, in a mapped file without a name that is gone when the result is."""
    with spool_in(directory) as file:
        for array in arrays:
            file.write(np.ascontiguousarray(array, kind).data)
        return mapped(file, kind)


def mapped(file: IO[bytes], kind: type) -> np.ndarray:
    """All that was written to a file, as an array; it stays when the file is closed."""
    file.flush()
    return np.asarray(np.memmap(file, kind, "r+")) if file.tell() else np.empty(0, kind)


class FirstRows:
    """Which rows are the first of those with the same 128-bit hash.

    RUN hashes at a time are sorted and written to `file`. Then these runs are merged, range of hashes by range: hashes
    are random numbers, so each range has about RUN of them.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.rows = 0  # that were added
        self._file = file
        self._waiting = bytearray()
        self._sizes: list[int] = []  # numbers of each run

    def add(self, hashes: bytes) -> None:
        """Add the hashes of the next rows, 16 bytes each."""
        self._waiting += hashes
        self.rows += len(hashes) // 16
        if len(self._waiting) >= 16 * RUN:
            self._write_run()

    def _write_run(self) -> None:
        hashes = np.frombuffer(self._waiting, np.uint64).reshape(-1, 2).T
        rows = np.arange(self.rows - hashes.shape[1], self.rows, dtype=np.uint64)
        run = first_of_equal(np.vstack([hashes, rows]))
        self._file.write(np.ascontiguousarray(run).data)
        self._sizes.append(run.size)
        self._waiting = bytearray()

    def merged(self) -> Iterator[np.ndarray]:
        """The distinct hashes in ascending order, in pieces (3, k): a hash's two halves and its first row."""
        self._write_run()
        runs = [run.reshape(3, -1) for run in np.split(mapped(self._file, np.uint64), np.cumsum(self._sizes)[:-1])]
        ranges = -(-sum(self._sizes) // (3 * RUN))
        starts = [0] * len(runs)
        for number in range(1, ranges + 1):
            last = np.uint64(2**64 * number // ranges - 1)
            ends = [int(np.searchsorted(run[0], last, side="right")) for run in runs]
            parts = [run[:, start:end] for run, start, end in zip(runs, starts, ends, strict=True)]
            yield first_of_equal(np.concatenate(parts, axis=1))
            starts = ends

    def ascending(self, directory: Path) -> np.ndarray:
        """The first rows of all distinct hashes, ascending: (d,) int64, on disk in `directory`."""
        sizes = (min(RUN, self.rows - start) for start in range(0, self.rows, RUN))
        is_first = on_disk(directory, (np.zeros(size, bool) for size in sizes), bool)
        for piece in self.merged():
            is_first[piece[2].astype(np.int64)] = True
        parts = ((start, is_first[start : start + RUN]) for start in range(0, self.rows, RUN))
        return on_disk(directory, (start + np.flatnonzero(part) for start, part in parts))


def first_of_equal(rows: np.ndarray) -> np.ndarray:
    """Columns (high, low, row) sorted by the hash, of equal hashes only the first: (3, k)."""
    rows = rows[:, np.lexsort((rows[1], rows[0]))]  # stable: equal values stay in the order in which they appear
    new = np.ones(rows.shape[1], bool)
    new[1:] = (rows[0, 1:] != rows[0, :-1]) | (rows[1, 1:] != rows[1, :-1])
    return rows[:, new]
