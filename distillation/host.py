"""What the host does beside the device: work ahead in a thread, memory given back, a process of its own."""

import contextlib
import ctypes
import multiprocessing
import queue
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import NoReturn, TypeVar

import pyarrow as pa
import torch

Item = TypeVar("Item")
POLL = 0.1  # seconds after which a thread that waits to hand over looks whether it is still wanted


def prefetch(items: Iterable[Item], ahead: int) -> Generator[Item, None, None]:
    """The same items in the same order, the next few made while the caller is at work on one.

    An error in making an item is raised in its place. Closing the generator (`contextlib.closing`) ends the thread.

    Args:
        items: what to iterate over, in the thread.
        ahead: items that may be ready and wait; with 0 each is made when it is asked for, without a thread.
    """
    if ahead == 0:
        yield from items
        return
    ready: queue.Queue[Callable[[], Item]] = queue.Queue(ahead)  # each gives an item, or raises
    unwanted = threading.Event()

    def hand_over(give: Callable[[], Item]) -> None:
        while not unwanted.is_set():
            with contextlib.suppress(queue.Full):
                return ready.put(give, timeout=POLL)

    def make() -> None:
        end: BaseException = StopIteration()
        try:
            for item in items:
                hand_over(partial(_give, item))
                if unwanted.is_set():
                    return
        except BaseException as error:
            end = error
        hand_over(partial(_raise, end))

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while True:
            try:
                item = ready.get()()
            except StopIteration:
                return
            yield item
    finally:
        unwanted.set()
        thread.join()


def overlaps(device: torch.device) -> bool:
    """Whether threads get on with the host's work while the device computes.

    A CPU computes on all its cores: threads beside it made labelling a fifth slower and training a twentieth.
    """
    return device.type != "cpu"


def _give(item: Item) -> Item:
    return item


def _raise(error: BaseException) -> NoReturn:
    raise error


def release_freed_memory() -> None:
    """Return freed heap pages to the operating system, where the C library can (glibc), and what Arrow holds back.

    Batches differ in size, and so do their tensors: freed blocks of one batch do not fit the next, and without this the
    process grows by gigabytes over a long run. Costs some milliseconds.
    """
    pa.default_memory_pool().release_unused()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def in_a_process_of_its_own() -> ProcessPoolExecutor:
    """One other process, begun afresh: what it does leaves no trace in the memory of this one."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("forkserver"))
