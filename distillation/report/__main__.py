"""What a run gave, for people: report.png (four panels), report.html (to explore) and the student's model card.

python -m distillation.report runs/minilm-3
python -m distillation.report runs/minilm-3 --push-to-hub OWNER/NAME    # and publish the student
python -m distillation.report runs/* --frontier frontier.png            # all of them by speed, size and what they keep
"""

from shortstack.distillation.flags import answer_first, parse_arguments

if __name__ == "__main__":
    answer_first("report")  # --help and a wrong flag end here, before the seconds that the imports below take

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from huggingface_hub import HfApi
from matplotlib.figure import Figure

from shortstack.distillation import RunError
from shortstack.distillation.command_line import run_command
from shortstack.distillation.evaluation.table import number
from shortstack.distillation.recipe import SHARED
from shortstack.distillation.report.card import eval_result_files, model_card
from shortstack.distillation.report.figure import figure, format_number
from shortstack.distillation.report.frontier import frontier_figure, models_of, table
from shortstack.distillation.report.page import report_page
from shortstack.distillation.report.run_files import ABOVE_ALL, RunFiles, shorten
from shortstack.model.files import InputError, atomic_path, first_line, write_text


def summary(files: RunFiles) -> str:
    """The run in a few lines: student and teacher per set, the speed, and last what is kept, the worst first."""
    lines = [f"{'':<22} {'student':>8} {'teacher':>8} {'kept':>7}"]
    for search in files.searches:
        if search.found is not None:
            lines.append(f"{shorten(f'found@10, {search.name}'):<22} {'':>8} {'':>8} {search.found:>7.1%}")
    kinds = ("nDCG@10", files.searches), ("Spearman", files.rows)
    sets = [(f"{kind}, {row.name}", row.student, row.teacher, row.kept) for kind, rows in kinds for row in rows]
    for name, student, teacher, kept in sets:
        figures = f"{format_number(student):>8} {format_number(teacher):>8} {number(kept, '.1%'):>7}"
        lines.append(f"{shorten(name):<22} {figures}")
    for speed in files.speeds:
        what, times = f"sentences/s, {speed.precision}", f"{speed.student / speed.teacher:.2f}x"
        lines.append(f"{what:<22} {speed.student:>8,.0f} {speed.teacher:>8,.0f} {times:>7}")
    return "\n".join([*lines, *([ABOVE_ALL] if files.above_all else []), files.headline])


def write_report(run: Path) -> None:
    """Write report.png, report.html and model/README.md in a run directory, and print a short table.

    Raises:
        InputError: no run directory, a file of it is corrupt, or the student was not evaluated yet.
    """
    files = RunFiles.read(run)
    picture, page, card = run / "report.png", run / "report.html", run / "model" / "README.md"
    with errors_about_figures(files):
        in_words = summary(files)
        texts = {page: report_page(files), card: model_card(files)}
        results = eval_result_files(files).items()
        texts |= {run / "model" / ".eval_results" / name: text for name, text in results}
        write_picture(picture, figure(files))
    for path, text in texts.items():
        write_text(path, text)
    for path in (picture, *texts):
        print(f"wrote {path}")
    print(in_words)


@contextlib.contextmanager
def errors_about_figures(files: RunFiles) -> Iterator[None]:
    """Let whatever is raised in the block by files that were edited, damaged or mixed up be an InputError."""
    try:
        yield
    except (InputError, OSError, MemoryError):
        raise
    except Exception as error:
        raise InputError(
            f"{files.directory}: its figures are not as they were written ({type(error).__name__}: "
            f"{first_line(error)}); write them again with train.py, evaluate.py and bench.py"
        ) from None


def write_picture(path: Path, picture: Figure) -> None:
    """Write a PNG file, whole or not at all."""
    with atomic_path(path) as temporary:
        picture.savefig(temporary, format="png")


def write_frontier(runs: Sequence[Path], path: Path) -> None:
    """Draw the students of some runs against each other, and print them as a table."""
    models = models_of(runs)
    write_picture(path, frontier_figure(models))
    print(table(models))
    print(f"wrote {path}")


def push_to_hub(run: Path, name: str) -> None:
    """Publish the student on the Hugging Face Hub, with a card whose examples load it by that name.

    `name` is OWNER/NAME, or NAME alone for the account that is logged in; it is made if it does not exist yet.

    Raises:
        RunError: the Hub can't be reached, or does not let us.
    """
    files = RunFiles.read(run)
    with errors_about_figures(files):
        card = model_card(files, name)
    write_text(run / "model" / "README.md", card)
    try:
        repository = HfApi().create_repo(name, exist_ok=True)
        HfApi().upload_folder(repo_id=repository.repo_id, folder_path=run / "model", commit_message="Add the student")
    except Exception as error:  # the Hub's errors, the network's, and of a name that can't be one
        raise RunError(f"{name}: not pushed ({first_line(error)}); to log in: hf auth login") from None
    print(f"pushed to {repository}")


def main() -> None:
    arguments = parse_arguments("report")
    if arguments.frontier and not arguments.push_to_hub:
        runs = [run for run in arguments.runs if run.name not in SHARED]
        if not runs:
            raise InputError("--frontier: give the directories of runs, as in runs/*")
        return write_frontier(runs, arguments.frontier)
    if len(arguments.runs) > 1 or arguments.frontier:
        raise InputError("give one RUN, or many with --frontier PNG alone")
    write_report(arguments.runs[0])
    if arguments.push_to_hub:
        push_to_hub(arguments.runs[0], arguments.push_to_hub)


if __name__ == "__main__":
    run_command(main)
