"""Work done ahead: the same items in the same order, errors where they belong, and no thread left behind."""

import contextlib
import threading
from collections.abc import Iterator

import pytest

from shortstack.model.files import InputError
from shortstack.model.prefetch import one_behind, prefetch


def numbers(end: int, made: list[int] | None = None, error: Exception | None = None) -> Iterator[int]:
    for number in range(end):
        if made is not None:
            made.append(number)
        yield number
    if error is not None:
        raise error


def test_nothing_is_made_ahead_where_it_is_not_wanted() -> None:
    made: list[int] = []
    before = threading.active_count()
    for number in prefetch(numbers(5, made), 0):
        assert made == list(range(number + 1)) and threading.active_count() == before


@pytest.mark.parametrize("ahead", [1, 3, 100])
def test_items_come_in_order_and_no_more_than_wanted_are_made_ahead(ahead: int) -> None:
    made: list[int] = []
    for number in prefetch(numbers(50, made), ahead):
        assert made[: number + 1] == list(range(number + 1))
        assert len(made) <= number + 1 + ahead + 1  # those that wait, and the one that waits to wait
    assert made == list(range(50))


def test_an_error_comes_after_the_items_before_it() -> None:
    seen = []
    with pytest.raises(InputError, match="^shard is damaged$"):
        for number in prefetch(numbers(5, error=InputError("shard is damaged")), 2):
            seen.append(number)
    assert seen == list(range(5))


@pytest.mark.parametrize("taken", [0, 1, 7])
def test_no_thread_is_left_when_the_caller_stops_early(taken: int) -> None:
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt), contextlib.closing(prefetch(numbers(1_000_000), 4)) as items:
        for _ in range(taken):
            next(items)
        raise KeyboardInterrupt
    assert threading.active_count() == before


def test_one_behind() -> None:
    made: list[int] = []
    for number in one_behind(numbers(5, made)):
        assert made == list(range(min(number + 2, 5)))
    assert made == list(range(5)) and list(one_behind(numbers(0))) == []
