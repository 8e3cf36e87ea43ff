"""Help from the host: work done ahead in a thread, memory returned to the system, work in a separate process."""

import contextlib
import ctypes
import multiprocessing
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any, TypeVar

import pyarrow as pa
import torch

Item = TypeVar("Item")
END: Any = object()


def prefetch(items: Iterable[Item], ahead: int) -> Generator[Item, None, None]:
    """The same items in the same order, the next few made in a thread while the caller works on one.

    An error in making an item is raised in its place. Closing the generator (`contextlib.closing`) ends the thread.

    Args:
        items: what to iterate over, in the thread.
        ahead: items that may be ready and wait; with 0 each is made when it is asked for, without a thread.
    """
    if ahead == 0:
        yield from items
        return
    iterator = iter(items)
    with ThreadPoolExecutor(1) as thread:
        ready = deque(thread.submit(next, iterator, END) for _ in range(ahead))
        try:
            while (item := ready.popleft().result()) is not END:
                ready.append(thread.submit(next, iterator, END))
                yield item
        finally:
            for future in ready:
                future.cancel()


def overlaps(device: torch.device) -> bool:
    """Whether threads can do the host's work while the device computes.

    A CPU computes on all its cores: threads beside it made labelling a fifth slower and training a twentieth.
    """
    return device.type != "cpu"


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
