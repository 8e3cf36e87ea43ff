"""Which layers each strategy keeps, and what wrong choices are told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortstack.distillation.student.layers import EVERY, STRATEGIES, choose_layers
from shortstack.model.files import InputError


@pytest.mark.parametrize(
    ("layers", "total", "kept"),
    [
        ("even:8", 24, [0, 3, 7, 10, 13, 16, 20, 23]),
        ("even:3", 6, [0, 2, 5]),
        ("even:2", 12, [0, 11]),
        ("even:1", 12, [11]),
        ("all", 3, [0, 1, 2]),
        ("every_second", 6, [0, 2, 4]),
        ("every_third", 24, [0, 3, 6, 9, 12, 15, 18, 21]),
        ("every_fourth", 6, [0, 4]),
        ("first:8", 24, list(range(8))),
        ("last:8", 24, list(range(16, 24))),
        ("ends:8", 24, [0, 1, 2, 3, 20, 21, 22, 23]),
        ("ends:3", 6, [0, 1, 5]),
        ("ends:1", 6, [0]),
        ("first:6", 6, list(range(6))),
        ([0, 2, 5], 6, [0, 2, 5]),
        ([5], 6, [5]),
    ],
)
def test_what_is_kept(layers: str | list[int], total: int, kept: list[int]) -> None:
    assert choose_layers(layers, total) == kept


@given(
    strategy=st.sampled_from([name for name in STRATEGIES if name != "auto"]), total=st.integers(1, 60), data=st.data()
)
def test_every_strategy_gives_ascending_layers_of_the_teacher(strategy: str, total: int, data: st.DataObject) -> None:
    if strategy in EVERY:
        kept = choose_layers(strategy, total)
        assert kept == list(range(0, total, EVERY[strategy]))
        return
    count = data.draw(st.integers(1, total))
    kept = choose_layers(f"{strategy}:{count}", total)
    assert len(kept) == count
    assert kept == sorted(set(kept)) and kept[0] >= 0 and kept[-1] < total
    if strategy == "even" and count > 1:
        assert (kept[0], kept[-1]) == (0, total - 1)
        gaps = [after - before for before, after in zip(kept, kept[1:], strict=False)]
        assert max(gaps) - min(gaps) <= 1


def test_auto_asks_the_search() -> None:
    assert choose_layers("auto:2", 6, search=lambda count: [0, count + 1]) == [0, 3]
    with pytest.raises(InputError, match="auto needs a teacher and text"):
        choose_layers("auto:2", 6)


def test_the_given_list_is_copied() -> None:
    given_list = [0, 1]
    assert choose_layers(given_list, 3) is not given_list


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], "list is empty"),
        ([0, 6], "6 is outside the teacher, which has layers 0 to 5"),
        ([-1], "-1 is outside"),
        ([0, 0], "each layer once"),
        ([3, 1], "must ascend"),
        ([0.0, 1.5], "whole numbers"),
        (["0", "1"], "whole numbers"),
        ([True], "whole numbers"),
        ("evne:3", "'evne:3' is neither a list of numbers nor one of auto, even, first"),
        ("", "neither"),
        ("even", "needs a count from 1 to 6, such as even:2"),
        ("auto", "needs a count from 1 to 6"),
        ("even:0", "needs a count"),
        ("even:7", "needs a count from 1 to 6"),
        ("even:-2", "needs a count"),
        ("even:two", "needs a count"),
        ("even:²", "needs a count"),
        ("every_third:2", "takes no count"),
    ],
)
def test_wrong_choices_get_one_clear_line(layers: str | list[int], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        choose_layers(layers, 6)
    assert str(caught.value).startswith("layers: ")
    assert "\n" not in str(caught.value)
