"""The whole reference run, timed: 1,195,425 sentences of 12.24 tokens through a third of mxbai-embed-large-v1's shape.

    python -m shortstack.benchmark.reference                                        # 2.5 minutes on an H200, estimated
    python -m shortstack.benchmark.reference --shape bert-tiny --sentences 2000     # a try on a CPU

Weights and text are random, so that nothing is downloaded: the student is of no use, its time is real. It counts from
the start of train.py to its end: reading the text, labels, training with its evaluations, the finished model. The
recipe is mxbai-large-8, with this text, and judged by the labels that are held out.
"""

import argparse
import dataclasses
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from shortstack.benchmark.random_models import random_embedder, random_sentences, shape_config
from shortstack.distillation import RunError
from shortstack.distillation.command_line import run_command
from shortstack.distillation.flags import whole_number
from shortstack.distillation.recipe import find_recipe, read_recipe, recipe_text
from shortstack.model.directory import usable_device

MEAN_TOKENS = 12.24  # of the reference run's sentences


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="bert-large", help="of the teacher, as bench.py takes it")
    parser.add_argument("--sentences", type=whole_number, default=1_195_425, help="to train on")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        layers = shape_config(arguments.shape).num_hidden_layers
        teacher = random_embedder(arguments.shape, layers, usable_device(None), "fp32")
        teacher.save(directory / "teacher")
        recipe = dataclasses.replace(
            read_recipe(find_recipe("mxbai-large-8")),
            name="reference",
            teacher=str(directory / "teacher"),
            layers=f"even:{max(1, layers // 3)}",
            sentences=[str(directory / "text.txt")],
            max_sentences=arguments.sentences,
            evaluation_sentences=max(1, arguments.sentences // 120),
            sts={},
            metric_for_best_model="negative_mse",
            output=scratch,
            report_to="none",
        )
        if usable_device(None).type == "cpu":
            recipe.precision = "auto"
        (directory / "reference.toml").write_text(recipe_text(recipe))
        text = random_sentences(teacher, arguments.sentences + 2 * recipe.evaluation_sentences, MEAN_TOKENS)
        (directory / "text.txt").write_text("\n".join(text) + "\n")
        del teacher  # the run needs the memory
        start = time.perf_counter()
        command = [sys.executable, "-m", "shortstack.train", str(directory / "reference.toml")]
        if subprocess.run(command).returncode != 0:
            raise RunError("the run has failed, for the reason above")
        print(f"the whole run, text to model: {time.perf_counter() - start:.0f} seconds")


if __name__ == "__main__":
    run_command(main)
