"""How long a run will take on this machine, from a few hundred texts labelled and one step taken on a copy."""

import dataclasses
import time

import numpy as np

from shortstack.distillation.data.corpus import Corpus
from shortstack.distillation.data.labels import LabelledSentences
from shortstack.distillation.ranks import Ranks
from shortstack.distillation.recipe import Recipe
from shortstack.distillation.run import Run
from shortstack.distillation.student.plan import Plan
from shortstack.distillation.student.width import keep_units
from shortstack.distillation.training.flat_optimizer import optimizer_for
from shortstack.distillation.training.graph import step_for
from shortstack.model import Embedder

SAMPLE = 256  # texts
GPU_SAMPLE = 4096  # fewer leave it waiting for its host
LONG = 100_000  # texts over all epochs; for longer runs an estimate is worth the seconds it takes


def say_expected_time(plan: Plan, corpus: Corpus, run: Run) -> None:
    """Say how long a long run of one process will take on this machine."""
    recipe, ranks = run.recipe, run.ranks
    if len(corpus) * recipe.epochs >= LONG and ranks.world == 1 and not run.resume and plan.vectors is None:
        copy = plan.start.keep_layers(plan.layers)
        if recipe.intermediate_size:  # which units does not matter here
            keep_units(copy, [list(range(recipe.intermediate_size))] * len(plan.layers))
        run.say(expected_time(plan.teacher, copy, corpus, recipe, ranks))


def expected_time(teacher: Embedder, student: Embedder, corpus: Corpus, recipe: Recipe, ranks: Ranks) -> str:
    """A line that says how long the labels and the steps will take; `student` is a copy that may be changed."""
    on_gpu = ranks.device.type == "cuda"
    sample = corpus.training(0, min(GPU_SAMPLE if on_gpu else SAMPLE, len(corpus)))
    texts = teacher.with_prompts(*sample)
    tokens = teacher.tokenize(texts)
    if on_gpu:  # which loads and compiles its kernels the first time
        teacher.embed(tokens).cpu()
    begun = time.perf_counter()
    labels = teacher.embed(tokens).float().cpu()
    label_seconds = (time.perf_counter() - begun) / len(tokens) * len(corpus)

    batch_size = min(recipe.batch_size, len(tokens))
    own_tokens = student.tokenize(texts)  # a student may have a smaller vocabulary
    labelled = LabelledSentences(own_tokens, labels[:, : student.dimensions])
    batch = labelled.take(np.argsort(labelled.lengths[:batch_size], kind="stable"))
    if batch_size < recipe.batch_size and recipe.gradient_accumulation > 1:  # parts as large as in the run, none empty
        parts = max(2, recipe.gradient_accumulation * batch_size // recipe.batch_size)
        recipe = dataclasses.replace(recipe, gradient_accumulation=min(parts, batch_size))
    step = step_for(student.train(), optimizer_for(student, recipe, ranks), recipe, ranks)
    for _ in range(4 if on_gpu else 2):  # the first is slower, and two more where the second is recorded as a graph
        begun = time.perf_counter()
        float(step(batch))  # waits for the device
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
