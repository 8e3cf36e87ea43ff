"""Layers chosen by trial: the best set is found, the teacher is left as it was, and recipes can ask for it."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import english_sentences, load

from shortstack.distillation.student.layer_search import linear_cka, search_layers

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
