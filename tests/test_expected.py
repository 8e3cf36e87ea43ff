"""What a long run says before it starts: minutes from a step on a copy, which leaves the teacher as it was."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import VOCABULARY, english_sentences, load, make_bert_dir, put

from shortstack.distillation.data.corpus import Draw, build_corpus
from shortstack.distillation.ranks import ALONE
from shortstack.distillation.recipe import Recipe
from shortstack.distillation.student.vocabulary import cut_vocabulary
from shortstack.distillation.training.expected import expected_time, minutes


def test_a_run_is_measured_without_touching_the_teacher(tmp_path: Path) -> None:
    teacher = load(make_bert_dir(tmp_path / "teacher"))
    corpus = build_corpus(
        tmp_path / "corpus", [put(tmp_path / "a.txt", "\n".join(english_sentences(300)))], Draw(None, 20, 1)
    )
    before = {name: value.clone() for name, value in teacher.bert.state_dict().items()}
    recipe = Recipe(precision="fp32", batch_size=16, epochs=3)
    cut, _ = cut_vocabulary(teacher.keep_layers([0]), np.arange(len(VOCABULARY) + 1), 60)
    many_parts = Recipe(precision="fp32", batch_size=8192, gradient_accumulation=512)
    whole = (teacher.keep_layers([0]) for _ in range(2))
    for student, settings in zip((next(whole), cut, next(whole)), (recipe, recipe, many_parts), strict=True):
        line = expected_time(teacher, student, corpus, settings, ALONE)
        assert re.fullmatch(r"expected on this machine: \d+ s for the teacher's labels, \d+ s for the steps; .*", line)
    assert all(torch.equal(value, before[name]) for name, value in teacher.bert.state_dict().items())


@pytest.mark.parametrize("seconds, words", [(40.2, "40 s"), (900, "15 minutes"), (12_600, "3.5 hours")])
def test_seconds_in_words(seconds: float, words: str) -> None:
    assert minutes(seconds) == words
