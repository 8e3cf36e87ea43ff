"""Memory that was freed, given back to the operating system."""

import contextlib
import ctypes

import pyarrow as pa


def release_freed_memory() -> None:
    """Return freed heap pages to the operating system, where the C library can (glibc), and what Arrow holds back.

    Batches differ in size, and so do their tensors: freed blocks of one batch do not fit the next, and without this the
    process grows by gigabytes over a long run. Costs some milliseconds.
    """
    pa.default_memory_pool().release_unused()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
