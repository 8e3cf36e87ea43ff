"""Another tool's model as if it were a student: how near it is to a teacher, and how fast.

    python -m shortstack.benchmark.others runs/model2vec/model --teacher assets/all-MiniLM-L6-v2 \\
        --retrieval assets/retrieval/* --sts sts-test=sts-test.csv

MODEL is anything that sentence-transformers loads: static word vectors as model2vec makes them, or a published model
of the same size. evaluation.json, bench.json and a recipe.toml that names the teacher go to the directory above MODEL,
or to --output, so that `python -m distillation.report RUN... --frontier PNG` draws it beside students.
"""

import argparse
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from shortstack.benchmark.peers import INSTALL
from shortstack.benchmark.timing import Encoder, describe_device, in_turn
from shortstack.distillation import RunError
from shortstack.distillation.command_line import named_sources, run_command
from shortstack.distillation.evaluation.embeddings import SetEmbeddings, embed_set
from shortstack.distillation.evaluation.judge import describe, with_means
from shortstack.distillation.evaluation.retrieval import evaluate_retrieval
from shortstack.distillation.evaluation.sets import RetrievalSet, StsPairs, read_retrieval, read_sts
from shortstack.distillation.evaluation.sts import compare_similarities, sts_similarities
from shortstack.distillation.evaluation.table import table
from shortstack.distillation.recipe import Recipe, read_recipe, recipe_text
from shortstack.model import Embedder
from shortstack.model.files import InputError, write_json, write_text

BATCH, TURNS = 64, 5


def encode(model: Encoder, texts: Sequence[str]) -> torch.Tensor:
    """Embeddings of texts without a prompt: (n, d)."""
    return torch.as_tensor(model.encode(list(texts), prompt="", batch_size=BATCH)).float().cpu()


def judge(
    model: Encoder, teacher: Embedder, retrieval: Sequence[RetrievalSet], sts: Sequence[StsPairs]
) -> dict[str, Any]:
    """The figures of evaluation.json that need nothing but embeddings."""
    figures: dict[str, Any] = {"student": {}, "teacher": {}, "retention": {}, "difference": {}, "retrieval": {}}
    for pairs in sts:
        ours = torch.cosine_similarity(encode(model, pairs.sentences1), encode(model, pairs.sentences2)).numpy()
        sections, _ = compare_similarities({"student": ours, "teacher": sts_similarities(teacher, pairs)}, pairs)
        for section, value in sections.items():
            figures[section][pairs.name] = value
    for data in retrieval:
        embedded = SetEmbeddings(encode(model, data.queries), encode(model, data.documents))
        figures["retrieval"][data.name] = evaluate_retrieval(data, embedded, embed_set(teacher, data))
    return figures


def speeds(model: Encoder, teacher: Embedder, sentences: list[str]) -> dict[str, Any]:
    """The figures of bench.json that the frontier reads: sentences a second of both, tokenising included, in turns."""
    works = [partial(encoder.encode, sentences, prompt="", batch_size=BATCH) for encoder in (teacher, model)]
    seconds = in_turn(works, TURNS, teacher.device)
    rates = [len(sentences) / statistics.median(times) for times in seconds]
    rows = [
        {"system": who, "precision": "fp32", "sentences_per_second": rate}
        for who, rate in zip(("teacher", "student"), rates, strict=True)
    ]
    return {"device": describe_device(teacher.device), "rows": rows, "student_speedup": rates[1] / rates[0]}


def layers_of(model: Any) -> int:
    """The transformer layers of a SentenceTransformer; 0 where it has word vectors only."""
    bert = getattr(model[0], "auto_model", None)
    return 0 if bert is None else bert.config.num_hidden_layers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="a directory, or a name on the Hub")
    parser.add_argument("--teacher", required=True, help="directory or Hub name")
    for flag in ("--retrieval", "--sts"):
        parser.add_argument(
            flag, nargs="+", action="extend", default=[], metavar="NAME=SOURCE", help="as evaluate.py takes them"
        )
    parser.add_argument("--output", type=Path, help="directory of the figures (default: the one above MODEL)")
    arguments = parser.parse_args()
    if not (arguments.retrieval or arguments.sts):
        raise InputError("nothing to judge by: give --retrieval NAME=SOURCE or --sts NAME=SOURCE")
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise RunError(f"needs sentence-transformers: {INSTALL}") from None
    if arguments.output is None and not Path(arguments.model).is_dir():
        raise InputError(f"{arguments.model}: is no directory here; say with --output where the figures go")
    output = arguments.output or Path(arguments.model).resolve().parent
    recipe = read_recipe(output / "recipe.toml") if (output / "recipe.toml").exists() else Recipe()
    if recipe.sentences or recipe.teacher_vectors:
        raise InputError(f"{output}: is a run of train.py, whose figures evaluate.py makes; give another --output")
    sts = [read_sts(*named) for named in named_sources(arguments.sts, "--sts").items()]
    retrieval = [read_retrieval(*named) for named in named_sources(arguments.retrieval, "--retrieval").items()]
    teacher = Embedder.load(arguments.teacher, "cpu", "fp32")
    model = SentenceTransformer(arguments.model, device="cpu")
    figures = judge(model, teacher, retrieval, sts)
    figures["models"] = {
        "student": {
            "name": arguments.model,
            "layers": layers_of(model),
            "dimensions": encode(model, ["text"]).shape[1],
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "precision": "fp32",
        },
        "teacher": describe(teacher),
    }
    figures = with_means(figures)
    text = [query for data in retrieval for query in data.queries] or [
        text for pairs in sts for text in pairs.sentences1
    ]
    timed = speeds(model, teacher, text[:1000])
    write_text(output / "recipe.toml", recipe_text(Recipe(name=output.name, teacher=arguments.teacher, layers=[])))
    write_json(output / "evaluation.json", figures)
    write_json(output / "bench.json", timed)
    print(table(figures))
    print(f"{timed['student_speedup']:.1f} times as fast as the teacher")
    print(f"wrote {output}/recipe.toml, evaluation.json and bench.json")


if __name__ == "__main__":
    run_command(main)
