"""Search a text file by meaning, three ways: by the teacher, by the student, and by the student in the teacher's index.

    python examples/search.py runs/minilm-3/model assets/sentences/news.txt "a storm destroyed many houses"

A student lives in its teacher's space, so that it can search embeddings that the teacher made: documents are embedded
once, by the better model, and every query costs no more than the student. The teacher is the one of the run that made
the model, unless --teacher names another.
"""

import argparse
import shutil
import textwrap
import time
from itertools import zip_longest

import torch

from shortstack.distillation.command_line import printable, run_command
from shortstack.distillation.data.sentences import read_sentences
from shortstack.distillation.flags import OneLineParser, model_of
from shortstack.distillation.recipe import overrides_for, read_recipe
from shortstack.distillation.run import run_directory
from shortstack.model import Embedder
from shortstack.model.files import InputError


def embed_documents(embedder: Embedder, sentences: list[str]) -> tuple[torch.Tensor, float]:
    """The index, (n, d), and the seconds it took."""
    embedder.encode_document(sentences[:64])  # warm up
    start = time.perf_counter()
    index_nd = torch.as_tensor(embedder.encode_document(sentences, convert_to_tensor=True))
    return index_nd, time.perf_counter() - start


def search(
    embedder: Embedder, query: str, index_nd: torch.Tensor, sentences: list[str], top: int
) -> tuple[list[str], list[str], float]:  # fmt: skip
    """The `top` sentences nearest to the query, the same with their cosine similarity, and the seconds it took."""
    embedder.encode_query(query)  # warm up
    start = time.perf_counter()
    similarities = embedder.similarity(embedder.encode_query(query, convert_to_tensor=True), index_nd)[0]
    best = similarities.topk(min(top, len(sentences)))
    seconds = time.perf_counter() - start
    nearest = [sentences[index] for index in best.indices.tolist()]
    shown = [f"{value:.3f} {printable(text)}" for value, text in zip(best.values.tolist(), nearest, strict=True)]
    return nearest, shown, seconds


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
    parser.add_argument("model", type=model_of, metavar="MODEL", help="the student: a run, a directory or a Hub name")
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
        models["teacher"] = Embedder.load(teacher_name, **overrides_for(teacher_name, recipe))

    indexes = {name: embed_documents(embedder, sentences) for name, embedder in models.items()}
    searches = {name: (models[name], indexes[name][0]) for name in models}
    if "teacher" in models and models["teacher"].dimensions == models["student"].dimensions:
        searches["student, teacher's index"] = models["student"], indexes["teacher"][0]
    results = {
        name: search(embedder, arguments.query, index, sentences, arguments.top)
        for name, (embedder, index) in searches.items()
    }
    columns = [[name, *shown] for name, (_, shown, _) in results.items()]
    print(side_by_side(columns, max(30, shutil.get_terminal_size((160, 24)).columns // len(columns))))
    print()
    for name, (_, seconds) in indexes.items():
        query_time = 1000 * results[name][2]
        print(f"{name}: {len(sentences):,} sentences in {seconds:.2f} s, the query in {query_time:.1f} ms")
    if len(results) == 3:
        found, _, seconds = results["student, teacher's index"]
        wanted, _, teachers = results["teacher"]
        both = len(set(found) & set(wanted))
        print(f"student, teacher's index: no sentence to embed again, the query in {1000 * seconds:.1f} ms instead of "
              f"{1000 * teachers:.1f}; finds {both} of the teacher's {len(wanted)}")  # fmt: skip


if __name__ == "__main__":
    run_command(main)
