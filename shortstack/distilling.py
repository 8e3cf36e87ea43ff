"""A run of `train.py` as a function.

from shortstack import distill

student = distill("sentence-transformers/all-MiniLM-L6-v2", texts, layers=3, epochs=2)
embeddings = student.encode(["one sentence", "another"])
"""

import contextlib
import json
import tempfile
from collections.abc import Iterable, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

from shortstack.distillation import RunError
from shortstack.distillation.curves import Callback
from shortstack.distillation.recipe import Recipe, set_field
from shortstack.model import Embedder
from shortstack.model.embedder import as_list
from shortstack.model.files import InputError, write_text
from shortstack.train import run_recipe

HELD_OUT = 1000  # texts to judge by at most; of fewer than ten times as many, a tenth


def distill(
    teacher: str | Path,
    texts: Iterable[str],
    layers: int | str | Sequence[int] = 3,
    *,
    output: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    **settings: Any,
) -> Embedder:
    """Train a student on texts.

    Args:
        teacher: a model directory or a Hub name.
        texts: to train on, one embedding each; some are held out to choose the best step by.
        layers: how many to keep, evenly spread; or what a recipe may say, such as [0, 2, 5] and "auto:3".
        output: keeps the run in `output`/NAME, its labels and its text; None keeps nothing on disk.
        callbacks: called with each line of the log, {"step": n, "loss": f, ...}.
        settings: other fields of a recipe, such as epochs=2, learning_rate=3e-4, device="cpu", name="mine".

    Raises:
        InputError: no texts, or a setting that is unknown or can't be.
        RunError: the training could not go on.
    """
    takes = "distill: takes a list of texts"
    lines = [json.dumps({"text": text}) for text in as_list(texts, takes)]  # as JSON, a text may have line breaks
    if isinstance(texts, str) or not lines:
        raise InputError(f"{takes}, got {'one string' if lines else 'none'}")
    if "sentences" in settings:
        raise InputError("distill: sentences: the texts are the second argument; leave this out")
    with contextlib.ExitStack() as stack:
        place = Path(output) if output is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        recipe = Recipe(name="student")
        kept = f"even:{layers}" if isinstance(layers, Integral) else layers
        settings = {
            "layers": list(kept) if isinstance(kept, tuple) else kept,
            "evaluation_sentences": max(1, min(HELD_OUT, len(lines) // 10)),
        } | settings
        for key, value in settings.items():
            set_field(recipe, key, value, "distill")
        file = place / f"{recipe.name}.jsonl"
        recipe.teacher, recipe.output, recipe.sentences = str(teacher), str(place), [f"{file}:text"]
        recipe.check()
        write_text(file, "\n".join(lines) + "\n")
        try:
            run_recipe(recipe, callbacks=callbacks)
        except RunError as error:
            kept = "" if output is not None else " (but without output=DIRECTORY nothing is kept)"
            raise RunError(f"{error}{kept}") from None
        return Embedder.load(recipe.directory / "model", None if recipe.device == "auto" else recipe.device)
