"""Work done ahead in a thread, so that a device never waits for its host."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, pairwise
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")
END: Any = object()


def prefetch(items: Iterable[Item], ahead: int) -> Generator[Item, None, None]:
    """The same items in the same order, the next few made in a thread while the caller works on one.

    An error in making an item is raised in its place. Closing the generator (`contextlib.closing`) ends the thread.

    Args:
        items: what to iterate over, in the thread.
        ahead: items that may be ready and wait; with 0 every item is made on demand, without a thread.
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


def one_behind(items: Iterable[Item]) -> Iterator[Item]:
    """The same items, one later: a GPU computes the next while the caller works on this one."""
    return (item for item, _ in pairwise(chain(items, [END])))


def overlaps(device: torch.device) -> bool:
    """Whether threads can do the host's work while the device computes.

    A CPU computes on all its cores: threads beside it made labelling a fifth slower and training a twentieth.
    """
    return device.type != "cpu"
