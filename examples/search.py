"""Search a text file by meaning, with teacher and student side by side: what each finds, and how long each takes.

    python examples/search.py runs/minilm-3/model assets/sentences/news.txt "a storm destroyed many houses"

The teacher is the one of the run that made the model, unless --teacher names another.
"""

import argparse
import shutil
import textwrap
import time
from itertools import zip_longest

from distillation.command_line import OneLineParser, run_command
from distillation.data.sentences import read_sentences
from distillation.recipe import read_recipe, teacher_overrides
from evaluate import run_directory
from model import Embedder
from model.files import InputError


def search(embedder: Embedder, sentences: list[str], query: str, top: int) -> tuple[list[tuple[float, str]], str]:
    """The `top` sentences nearest to the query, as (cosine similarity, sentence), and a line about the time it took."""
    embedder.encode(sentences[:64])  # warm up
    start = time.perf_counter()
    documents = embedder.encode(sentences, convert_to_tensor=True)
    middle = time.perf_counter()
    prompt = "query" if "query" in embedder.settings.prompts else None
    similarities = embedder.similarity(embedder.encode(query, prompt, convert_to_tensor=True), documents)[0]
    best = similarities.topk(min(top, len(sentences)))
    end = time.perf_counter()
    found = [
        (value, sentences[index]) for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
    return found, f"{len(sentences):,} sentences in {middle - start:.2f} s, the query in {1000 * (end - middle):.1f} ms"


def side_by_side(columns: list[list[str]], width: int) -> str:
    """Texts in columns of `width` characters, each wrapped within its own."""
    lines = []
    for row in zip_longest(*columns, fillvalue=""):
        wrapped = [textwrap.wrap(text, width - 2, subsequent_indent=" " * 6, max_lines=3) for text in row]
        for parts in zip_longest(*wrapped, fillvalue=""):
            lines.append("".join(part.ljust(width) for part in parts).rstrip())
    return "\n".join(lines)


def main() -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="the student: a directory or Hub name")
    parser.add_argument("file", metavar="FILE", help="sentences, one a line; CSV, JSON lines and Parquet too")
    parser.add_argument("query", metavar="QUERY", help="what to look for")
    parser.add_argument("--teacher", help="directory or Hub name (default: the run's teacher, 'none' for none)")
    parser.add_argument("--top", type=int, default=5, help="sentences to show (default: 5)")
    arguments = parser.parse_args()
    if arguments.top < 1:
        raise InputError(f"--top: {arguments.top} must be at least 1")

    run = run_directory(arguments.model)
    recipe = read_recipe(run / "recipe.toml") if run is not None else None
    teacher_name = arguments.teacher or (recipe.teacher if recipe is not None else "none")
    sentences = list(dict.fromkeys(read_sentences(arguments.file)))
    models = {"student": Embedder.load(arguments.model)}
    if teacher_name != "none":
        overrides = teacher_overrides(recipe) if recipe is not None and teacher_name == recipe.teacher else {}
        models["teacher"] = Embedder.load(teacher_name, **overrides)

    results = {name: search(embedder, sentences, arguments.query, arguments.top) for name, embedder in models.items()}
    columns = [[name, *(f"{value:.3f} {text}" for value, text in found)] for name, (found, _) in results.items()]
    print(side_by_side(columns, max(30, shutil.get_terminal_size((160, 24)).columns // len(columns))))
    print()
    for name, (_, time_taken) in results.items():
        print(f"{name}: {time_taken}")


if __name__ == "__main__":
    run_command(main)
