"""What a student keeps of its teacher: STS correlations, retrieval, nearest neighbours, negative MSE.

    python evaluate.py runs/minilm-3/model --sts sts-test=sts-test.csv
    python evaluate.py runs/minilm-3/model --retrieval assets/retrieval/*          # all sets that prepare makes
    python evaluate.py runs/minilm-3/model --teacher assets/all-MiniLM-L6-v2 --retrieval captions=parallel:a.txt,b.txt

Prints a table and writes evaluation.json and evaluation_pairs.json beside the model. Teacher, STS sets, retrieval sets
(also the one of a user's own documents) and held-out sentences are those of the run that made the model; a flag
replaces those of its kind. Where the two files are already there and of the same models, the sets that are not
evaluated again stay in them, and the warnings of training.
"""

from shortstack.distillation.flags import answer_first, parse_arguments

if __name__ == "__main__":
    answer_first("evaluate")  # --help and a wrong flag end here, before the seconds that the imports below take

from pathlib import Path

from shortstack.distillation.command_line import named_sources, run_command
from shortstack.distillation.data.passages import cutter_of
from shortstack.distillation.data.sentences import Texts, read_sentences
from shortstack.distillation.data.sources import split_marks
from shortstack.distillation.evaluation.judge import Judge
from shortstack.distillation.evaluation.own import NAME, verdict
from shortstack.distillation.evaluation.results import merged, read_results, write_results
from shortstack.distillation.evaluation.sets import read_held_out, read_retrieval, read_sts
from shortstack.distillation.evaluation.table import table
from shortstack.distillation.recipe import overrides_for, read_recipe
from shortstack.distillation.run import run_directory
from shortstack.model import Embedder
from shortstack.model.files import InputError


def read_marked(sources: list[str], student: Embedder) -> Texts:
    """The sentences of all sources, with the roles that the sources' marks give them."""
    cutter = cutter_of(student)
    texts = [(text, split_marks(source)[0].role) for source in sources for text in read_sentences(source, cutter)]
    return Texts([text for text, _ in texts], [role for _, role in texts])


def main() -> None:
    arguments = parse_arguments("evaluate")
    run = run_directory(arguments.model)
    recipe = read_recipe(run / "recipe.toml") if run is not None else None
    teacher_name = arguments.teacher or (recipe.teacher if recipe else "none")
    sts_sources, retrieval_sources = (recipe.sts, recipe.retrieval) if recipe else ({}, {})
    if arguments.sts:
        sts_sources = named_sources(arguments.sts, "--sts")
    if arguments.retrieval:
        retrieval_sources = named_sources(arguments.retrieval, "--retrieval")
    elif run is not None and (run / NAME).is_dir():
        retrieval_sources = {NAME: str(run / NAME), **retrieval_sources}
    if not (sts_sources or retrieval_sources or arguments.sentences):
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
    teacher = None
    if teacher_name != "none":
        overrides = overrides_for(teacher_name, recipe)
        teacher = Embedder.load(teacher_name, arguments.device, arguments.precision, **overrides)
        if arguments.sentences and student.dimensions != teacher.dimensions:
            raise InputError(
                f"--sentences: the student has {student.dimensions} dimensions, the teacher {teacher.dimensions}: "
                "there is no distance between them; leave --sentences out or give another --teacher"
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
