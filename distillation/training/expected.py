"""How long a run will take on this machine, from a few hundred texts labelled and one step taken on a copy."""

import time

import numpy as np

from shortstack.distillation.data.corpus import Corpus
from shortstack.distillation.data.labels import LabelledSentences
from shortstack.distillation.ranks import Ranks
from shortstack.distillation.recipe import Recipe
from shortstack.distillation.training.flat_optimizer import optimizer_for
from shortstack.distillation.training.step import train_step
from shortstack.model import Embedder

SAMPLE = 256  # texts
LONG = 100_000  # texts over all epochs; for longer runs an estimate is worth the seconds it takes


def expected_time(teacher: Embedder, student: Embedder, corpus: Corpus, recipe: Recipe, ranks: Ranks) -> str:
    """A line that says how long the labels and the steps will take.

    Args:
        student: a copy that may be changed.
    """
    sample = corpus.training(0, min(SAMPLE, len(corpus)))
    tokens = teacher.tokenize(teacher.with_prompts(*sample))
    begun = time.perf_counter()
    labels = teacher.embed(tokens).float().cpu()
    labelled = LabelledSentences(tokens, labels[:, : student.dimensions])
    label_seconds = (time.perf_counter() - begun) / len(labelled) * len(corpus)

    batch_size = min(recipe.batch_size, len(labelled))
    batch = labelled.take(np.argsort(labelled.lengths[:batch_size], kind="stable"))
    optimizer = optimizer_for(student.train(), recipe, ranks)
    for _ in range(2):  # the first step is slower
        begun = time.perf_counter()
        float(train_step(student, optimizer, batch, recipe, ranks))  # waits for the device
        seconds = time.perf_counter() - begun
    step_seconds = seconds / batch_size * len(corpus) * recipe.epochs
    return (
        f"expected on this machine: {minutes(label_seconds)} for the teacher's labels, {minutes(step_seconds)} for the "
        "steps; evaluations come on top"
    )


def minutes(seconds: float) -> str:
    """Seconds in words, such as "40 s", "12 minutes" and "3.5 hours"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
