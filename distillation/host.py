"""Help from the host: memory returned to the system, and work in a separate process."""

import contextlib
import ctypes
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pyarrow as pa


def release_freed_memory() -> None:
    """Return freed heap pages to the operating system, where the C library can (glibc), and what Arrow holds back.

    Batches differ in size, and so do their tensors: freed blocks of one batch do not fit the next, and without this the
    process grows by gigabytes over a long run. Costs some milliseconds.
    """
    pa.default_memory_pool().release_unused()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def in_a_process_of_its_own() -> ProcessPoolExecutor:
    """One other process, started fresh: what it does leaves no trace in the memory of this one."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("forkserver"))
