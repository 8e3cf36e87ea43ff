"""What a student keeps of its teacher: STS correlations, retrieval, nearest neighbours, negative MSE.

    python evaluate.py runs/minilm-3/model --sts sts-test=sts-test.csv
    python evaluate.py runs/minilm-3/model --retrieval assets/retrieval/*          # all sets that prepare makes
    python evaluate.py runs/minilm-3/model --teacher assets/all-MiniLM-L6-v2 --retrieval captions=parallel:a.txt,b.txt
    python evaluate.py runs/minilm-3/model --index vectors.npy --texts documents.txt --queries queries.txt

Prints a table and writes evaluation.json and evaluation_pairs.json: beside the model of a run, else where --output
says or here. Teacher, STS sets, retrieval sets (also the one of a user's own documents) and held-out sentences are
those of the run that made the model; a flag replaces those of its kind. Where the two files already exist for the same
models, they keep the sets that are not evaluated again and the warnings of training. --index judges an index that the
teacher made instead, and writes index.json; see distillation/evaluation/index.py.
"""

from shortstack.distillation.flags import answer_first, parse_arguments

if __name__ == "__main__":
    answer_first("evaluate")  # --help and a wrong flag end here, before the seconds that the imports below take

from argparse import Namespace
from pathlib import Path

from shortstack.distillation import RunError
from shortstack.distillation.command_line import named_sources, run_command
from shortstack.distillation.data.passages import cutter_of
from shortstack.distillation.data.sentences import Texts, read_sentences
from shortstack.distillation.data.sources import split_marks
from shortstack.distillation.evaluation.index import Index, check_index, index_lines, read_documents, search_index
from shortstack.distillation.evaluation.judge import Judge
from shortstack.distillation.evaluation.own import NAME, verdict
from shortstack.distillation.evaluation.results import merged, read_results, write_results
from shortstack.distillation.evaluation.sets import read_held_out, read_retrieval, read_sts
from shortstack.distillation.evaluation.table import table
from shortstack.distillation.recipe import Recipe, overrides_for, read_recipe
from shortstack.distillation.run import run_directory
from shortstack.model import Embedder
from shortstack.model.files import InputError, write_json


def read_marked(sources: list[str], student: Embedder) -> Texts:
    """The sentences of all sources, with the roles that the sources' marks give them."""
    cutter = cutter_of(student)
    texts = [(text, split_marks(source)[0].role) for source in sources for text in read_sentences(source, cutter)]
    return Texts([text for text, _ in texts], [role for _, role in texts])


def load_teacher(arguments: Namespace, name: str, recipe: Recipe | None) -> Embedder | None:
    """The teacher as the run used it; None where there is none."""
    if name == "none":
        return None
    return Embedder.load(name, arguments.device, arguments.precision, **overrides_for(name, recipe))


def judge_index(arguments: Namespace, run: Path | None, teacher: Embedder | None) -> None:
    """What --index asks for.

    Raises:
        RunError: the vectors are not the teacher's.
    """
    if arguments.sts or arguments.retrieval or arguments.sentences:
        raise InputError("--index: takes --texts and --queries; run evaluate.py again for --sts and the others")
    queries = (
        [text for row in read_documents(arguments.queries) for text in row[1:] if text] if arguments.queries else []
    )
    if arguments.queries and not queries:
        raise InputError(f"{arguments.queries}: no queries in it")
    output = arguments.output or run or Path(".")
    index = Index.read(arguments.index, arguments.texts, read_held_out(run)[0], output)
    check = check_index(index, teacher) if teacher is not None else None
    if check is not None and not check["near"]:
        raise RunError(f"{arguments.index}: {check['verdict']}")
    student = Embedder.load(arguments.model, arguments.device, arguments.precision)
    search = search_index(index, student, teacher, queries)
    write_json(output / "index.json", {"index": check, "search": search})
    print(index_lines(check, search))
    print(f"wrote {output / 'index.json'}")


def main() -> None:
    arguments = parse_arguments("evaluate")
    run = run_directory(arguments.model)
    recipe = read_recipe(run / "recipe.toml") if run is not None else None
    teacher_name = arguments.teacher or (recipe.teacher if recipe else "none")
    if arguments.index:
        judge_index(arguments, run, load_teacher(arguments, teacher_name, recipe))
        return
    if arguments.texts or arguments.queries:
        raise InputError("--texts and --queries: belong to --index FILE, which is missing")
    sts_sources, retrieval_sources = (recipe.sts, recipe.retrieval) if recipe else ({}, {})
    if arguments.sts:
        sts_sources = named_sources(arguments.sts, "--sts")
    if arguments.retrieval:
        retrieval_sources = named_sources(arguments.retrieval, "--retrieval")
    elif run is not None and (run / NAME).is_dir():
        retrieval_sources = {NAME: str(run / NAME), **retrieval_sources}
    unnamed = not (sts_sources or retrieval_sources or arguments.sentences)
    if unnamed and (teacher_name == "none" or not read_held_out(run).sentences):
        raise InputError(
            "nothing to evaluate on: give --sts NAME=SOURCE, --retrieval NAME=SOURCE or --sentences SOURCE"
        )
    if arguments.sentences and teacher_name == "none":
        raise InputError("--sentences: the negative MSE to a teacher needs one; give --teacher")
    output = arguments.output or run or Path(".")
    earlier = read_results(output)
    sts = [read_sts(name, source) for name, source in sts_sources.items()]
    retrieval = [read_retrieval(name, source) for name, source in retrieval_sources.items()]

    student = Embedder.load(arguments.model, arguments.device, arguments.precision)
    teacher = load_teacher(arguments, teacher_name, recipe)
    if teacher is not None and (arguments.sentences or unnamed) and student.dimensions != teacher.dimensions:
        raise InputError(
            f"the student has {student.dimensions} dimensions, the teacher {teacher.dimensions}: there is no distance "
            "between them; judge by --sts or --retrieval without --sentences, or give another --teacher"
        )
    held_out = read_marked(arguments.sentences, student) if arguments.sentences else read_held_out(run)

    kept = run.parent / "labels" if run is not None else None
    results = Judge(sts, retrieval, held_out, kept=kept).fully(student, teacher)
    results = merged(earlier, results)
    write_results(output, results)
    print(table(results[0]))
    print(f"wrote {output / 'evaluation.json'}")
    if line := verdict(results[0]):
        print(line)


if __name__ == "__main__":
    run_command(main)
