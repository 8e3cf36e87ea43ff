"""Which layers each strategy keeps, which ones the search finds, and what wrong choices are told."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import english_sentences, load

from shortstack.distillation.student.layers import choose_layers, linear_cka, note_on_layers, search_layers
from shortstack.model.files import InputError


@pytest.mark.parametrize(
    ("layers", "total", "kept"),
    [
        ("even:8", 24, [0, 3, 7, 10, 13, 16, 20, 23]),
        ("even:3", 6, [0, 2, 5]),
        ("even:2", 12, [0, 11]),
        ("even:1", 12, [11]),
        ("all", 3, [0, 1, 2]),
        ("none", 3, []),
        ([], 3, []),  # what a run of `none` writes down
        ("even:6", 6, list(range(6))),
        ("auto:2", 6, None),  # the search decides
        ([0, 2, 5], 6, [0, 2, 5]),
        ([5], 6, [5]),
    ],
)
def test_what_is_kept(layers: str | list[int], total: int, kept: list[int] | None) -> None:
    assert choose_layers(layers, total) == kept


@pytest.mark.parametrize("total", [2, 3, 7, 24])
def test_even_keeps_both_ends_and_equal_gaps(total: int) -> None:
    for count in range(2, total + 1):
        kept = choose_layers(f"even:{count}", total)
        assert kept is not None and len(kept) == count and (kept[0], kept[-1]) == (0, total - 1)
        gaps = np.diff(kept)
        assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([0, 6], "6 is outside the teacher, which has layers 0 to 5"),
        ([-1], "-1 is outside"),
        ([0, 0], "each layer once"),
        ([3, 1], "must ascend"),
        ([0.0, 1.5], "whole numbers"),
        (["0", "1"], "whole numbers"),
        ([True], "whole numbers"),
        ("evne:3", "'evne:3' is neither a list of numbers nor one of all, none, auto:COUNT, even:COUNT"),
        ("", "neither"),
        ("even", "needs a count from 1 to 6, such as even:2"),
        ("auto", "needs a count from 1 to 6"),
        ("even:0", "needs a count"),
        ("even:7", "needs a count from 1 to 6"),
        ("even:-2", "needs a count"),
        ("even:two", "needs a count"),
        ("even:²", "needs a count"),
        ("all:2", "neither"),
    ],
)
def test_wrong_choices_get_one_clear_line(layers: str | list[int], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        choose_layers(layers, 6)
    assert str(caught.value).startswith("layers: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layers", ["even:3", "auto:1", [0]])
def test_a_student_without_layers_has_none_to_keep(layers: str | list[int]) -> None:
    with pytest.raises(InputError, match="layers: .*words.* has none"):
        choose_layers(layers, 0, "words")
    assert choose_layers("all", 0) == choose_layers("none", 0) == []


# -- the search ------------------------------------------------------------------------------------------------------

SENTENCES = english_sentences(60)


def test_every_choice_is_tried_and_the_best_taken(tiny_model_dir: Path) -> None:
    teacher = load(tiny_model_dir)
    whole = torch.as_tensor(teacher.encode(SENTENCES))
    scores = {
        layers: linear_cka(torch.as_tensor(teacher.keep_layers(layers).encode(SENTENCES)), whole)
        for layers in itertools.combinations(range(6), 2)
    }
    assert search_layers(teacher, SENTENCES, 2) == list(max(scores, key=lambda layers: scores[layers]))


def test_too_many_choices_are_searched_by_leaving_layers_out(tiny_cls_dir: Path) -> None:
    teacher = load(tiny_cls_dir)
    whole = torch.as_tensor(teacher.encode(SENTENCES))
    total = teacher.bert.config.num_hidden_layers

    def without(layer: int) -> float:
        kept = [other for other in range(total) if other != layer]
        return linear_cka(torch.as_tensor(teacher.keep_layers(kept).encode(SENTENCES)), whole)

    least_missed = max(range(total), key=without)
    assert search_layers(teacher, SENTENCES, total - 1, exhaustive=1) == [
        layer for layer in range(total) if layer != least_missed
    ]
    assert len(search_layers(teacher, SENTENCES, 3, exhaustive=1)) == 3


def test_all_layers_are_the_teacher_itself(tiny_model_dir: Path) -> None:
    teacher = load(tiny_model_dir)
    assert search_layers(teacher, SENTENCES, 6) == list(range(6))


def test_the_teacher_is_left_as_it_was(tiny_model_dir: Path) -> None:
    teacher = load(tiny_model_dir)
    before = teacher.encode(SENTENCES)
    search_layers(teacher, SENTENCES, 3)
    assert np.array_equal(teacher.encode(SENTENCES), before)


def test_linear_cka_is_1_for_a_rotation_and_less_for_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(50, 8, generator=generator)
    rotation, _ = torch.linalg.qr(torch.randn(8, 8, generator=generator))
    assert linear_cka(embeddings, embeddings @ rotation) == pytest.approx(1, abs=1e-5)
    assert linear_cka(embeddings, torch.randn(50, 8, generator=generator)) < 0.5


def test_one_number_may_mean_so_many_layers() -> None:
    note = "--layers 3 keeps one layer, number 3; for 3 layers: --layers even:3"
    assert note_on_layers([3]) == note
    for clear in ([0], [1], [0, 3], "even:3", "all"):
        assert note_on_layers(clear) == ""
