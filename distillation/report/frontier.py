"""Students of several runs in one picture and one table: what each keeps, against how fast and how large it is."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter
from matplotlib.transforms import Bbox, BboxBase

from shortstack.distillation.evaluation.table import number
from shortstack.distillation.report.figure import FAINT, INK, STYLE, say
from shortstack.distillation.report.run_files import RunFiles, read_object, shorten

LABELS = {
    "found": "search: the teacher's first ten found",
    "search": "search: share of the teacher's nDCG@10",
    "sts": "STS: share of the teacher's Spearman",
    "speed": "sentences a second",
    "megabytes": "MB of weights in fp32",
}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # of teachers: Okabe and Ito's, as in figure.py
MARKERS = {"fp32": "o", "bf16": "s", "fp16": "D", "int8": "^"}


@dataclass(frozen=True)
class Model:
    """A student, or a teacher itself, in one precision.

    Attributes:
        name: the run's; of a teacher, the last part of its own.
        teacher: the last part of the teacher's name.
        layers: such as "3 of 6"; of a teacher all it has.
        width: units of each layer's MLP, where they are fewer than the teacher's.
        pieces: of the vocabulary, where they are fewer than the teacher's.
        dimensions: of an embedding.
        precision: that it was evaluated and timed in.
        megabytes: of its weights in fp32, 10^6 bytes; None where not known.
        speed: sentences a second; None where not measured.
        found: found@10, the share of the teacher's first ten documents that are among its own, on average over the
            sets that all runs have it of.
        search, sts: share kept of the teacher's nDCG@10 and Spearman, on average over the sets that all runs have.
    """

    name: str
    teacher: str
    layers: str
    width: int | None
    pieces: int | None
    dimensions: int | None
    precision: str
    megabytes: float | None
    speed: float | None
    found: float | None
    search: float | None
    sts: float | None


def evaluations(run: Path) -> list[RunFiles]:
    """A run's own evaluation, then those in directories within it, such as `evaluate.py --precision int8` wrote."""
    own = RunFiles.read(run)
    others = sorted(run.glob("*/evaluation.json"))
    return [own, *(replace(own, evaluation=read_object(path)) for path in others)]


def models_of(runs: Sequence[Path]) -> list[Model]:
    """Every student of some runs, and each teacher once for every precision it was timed in, the fastest first."""
    evaluated = [files for run in runs for files in evaluations(run)]
    searches = set.intersection(*({row.name for row in files.searches if row.kept is not None} for files in evaluated))
    compared = set.intersection(*({row.name for row in files.searches if row.found is not None} for files in evaluated))
    sets = set.intersection(*({row.name for row in files.results if row.kept is not None} for files in evaluated))
    models: dict[tuple[str, str], Model] = {}
    directories: dict[str, Path] = {}
    for files in evaluated:
        student, teacher = files.student, files.teacher
        precision = student.get("precision") or "fp32"
        name = Path(files.recipe.get("teacher", "teacher")).name
        speeds = {row.precision: row for row in files.speeds}
        layers = f"{student['layers']} of {teacher['layers']}" if teacher else str(student["layers"])
        speed = speeds[precision].student if precision in speeds else None
        found_10 = mean([row.found for row in files.searches if row.name in compared])
        search = mean([row.kept for row in files.searches if row.name in searches])
        sts = mean([row.kept for row in files.results if row.name in sets])
        width, pieces = files.recipe.get("intermediate_size"), files.data.get("vocabulary", {}).get("pieces")
        size = megabytes(student.get("parameters"))
        # Runs of one name are told apart by their directories: one was moved aside, or is of another output.
        own_name = files.name
        for other_name in (files.directory.resolve().name, str(files.directory)):
            if directories.setdefault(own_name, files.directory) == files.directory:
                break
            own_name = other_name
        models[own_name, precision] = Model(
            own_name, name, layers, width, pieces, student.get("dimensions"), precision, size, speed,
            found_10, search, sts,
        )  # fmt: skip
        if teacher and precision in speeds:
            whole, size = str(teacher["layers"]), megabytes(teacher.get("parameters"))
            rate = speeds[precision].teacher
            kept = [None if share is None else 1.0 for share in (found_10, search, sts)]
            models.setdefault(
                (name, precision),
                Model(name, name, whole, None, None, teacher.get("dimensions"), precision, size, rate, *kept),
            )
    return sorted(models.values(), key=lambda model: -(model.speed or 0))


def mean(shares: Sequence[float | None]) -> float | None:
    known = [share for share in shares if share is not None]
    return sum(known) / len(known) if known else None


def megabytes(parameters: int | None) -> float | None:
    """The size of so many weights in fp32, in MB; None if not known."""
    return None if parameters is None else 4e-6 * parameters


def table(models: Sequence[Model]) -> str:
    """The models as a Markdown table."""
    heads = (
        "model", "teacher", "layers", "width", "pieces", "dimensions", "precision", "MB", "sentences/s",
        "found@10", "nDCG@10", "STS",
    )  # fmt: skip
    lines = [heads, ("---",) * len(heads)]
    for model in models:
        numbers = [f"{value:,.0f}" if value else "–" for value in (model.megabytes, model.speed)]
        shares = [number(share, ".1%") for share in (model.found, model.search, model.sts)]
        width, pieces = (f"{count:,}" if count else "all" for count in (model.width, model.pieces))
        texts = [model.name, model.teacher, model.layers, width, pieces, str(model.dimensions or "–"), model.precision]
        lines.append((*texts, *numbers, *shares))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# -- the picture -----------------------------------------------------------------------------------------------------


def frontier_figure(models: Sequence[Model]) -> Figure:
    """Two panels a row, 1600 x 600 pixels: what is found and kept of search and STS, over speed and over size."""
    kinds = [y for y in ("found", "search", "sts") if y != "found" or any(model.found is not None for model in models)]
    teachers = list(dict.fromkeys(model.teacher for model in models))
    colours = dict(zip(teachers, COLOURS * len(teachers), strict=False))
    with matplotlib.rc_context(STYLE):
        layout = ConstrainedLayoutEngine(w_pad=0.2, h_pad=0.2, wspace=0.04, hspace=0.04)
        picture = Figure(figsize=(16, 6 * len(kinds)), dpi=100, layout=layout, facecolor="white")
        title = "What each student keeps of its teacher, by speed and by size"
        picture.suptitle(title, fontsize=18, fontweight="bold")
        names: list[Annotation] = []
        for axes, (x, y) in zip(
            picture.subplots(len(kinds), 2).flat,
            [(x, y) for y in kinds for x in ("speed", "megabytes")],
            strict=True,
        ):
            names += draw(axes, models, x, y, colours)
        handles = [
            Line2D([], [], color=colour, marker="o", linestyle="", label=name) for name, colour in colours.items()
        ]
        used = [model.precision for model in models]
        handles += [
            Line2D([], [], color=FAINT, marker=marker, linestyle="", label=name)
            for name, marker in MARKERS.items()
            if name in used
        ]
        best = "the best choices: no other is both better and faster (or smaller)"
        handles.append(Line2D([], [], color=FAINT, linestyle=":", label=best))
        picture.legend(handles=handles, loc="outside lower center", ncols=len(handles))
        picture.draw_without_rendering()  # gives everything its place
        spread(names)
    return picture


def spread(names: list[Annotation]) -> None:
    """Move every name to the nearest free place beside its point, right or left of it, then up or down.

    A place over the numbers of the axis is not free.
    """
    taken: list[BboxBase] = []
    for axes in {name.axes for name in names if name.axes is not None}:
        points = axes.transData.transform(np.concatenate([dots.get_offsets() for dots in axes.collections]))
        taken += [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in points]
    for name in sorted(names, key=lambda name: -name.get_window_extent().y0):
        for step, right in itertools.product(range(40), (True, False)):
            name.set_horizontalalignment("left" if right else "right")
            name.xyann = (9 if right else -9, -3 + 3 * (step // 2) * (1 if step % 2 else -1))
            box = name.get_window_extent()
            inside = name.axes is None or box.x0 >= name.axes.bbox.x0
            if inside and not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)


def draw(axes: Axes, models: Sequence[Model], x: str, y: str, colours: dict[str, str]) -> list[Annotation]:
    """One panel: attribute y of the models over their attribute x, with a line along each teacher's best.

    Returns the models' names in it.
    """
    points = [(getattr(model, x), getattr(model, y), model) for model in models]
    points = [point for point in points if None not in point]
    points.sort(key=lambda point: point[1])
    if x == "megabytes":  # the same in every precision: one point a model, its best
        points = list({point[2].name: point for point in points}.values())
    if not points:
        say(axes, LABELS[y], "Not measured on a set that all runs have.")
        return []
    axes.set_xscale("log")
    frontier: list[tuple[float, float, Model]] = []
    for teacher, colour in colours.items():  # shares of different teachers are not the same thing
        best = best_of([point for point in points if point[2].teacher == teacher], fewer=x == "megabytes")
        axes.plot([point[0] for point in best], [point[1] for point in best], color=colour, linestyle=":", zorder=1)
        frontier += best
    named: dict[str, Annotation] = {}
    for place, share, model in sorted(points, key=lambda point: -point[0]):
        chosen = (place, share, model) in frontier
        alpha, marker = (1.0 if chosen else 0.45), MARKERS.get(model.precision if x == "speed" else "", "o")
        axes.scatter(place, share, s=90, color=colours[model.teacher], marker=marker, alpha=alpha, linewidths=0)
        if (chosen or x == "megabytes") and model.name not in named:
            named[model.name] = axes.annotate(
                shorten(model.name, 28), (place, share), xytext=(9, -3),
                textcoords="offset points", fontsize=9.5, color=INK if chosen else FAINT,
            )  # fmt: skip
    axes.set(xlabel=LABELS[x], ylabel=LABELS[y])
    axes.margins(0.14, 0.08)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value / 1000:g}k" if value >= 1000 else f"{value:g}")
    )
    axes.xaxis.set_minor_formatter(NullFormatter())
    return list(named.values())


def best_of(points: list[tuple[float, float, Model]], fewer: bool) -> list[tuple[float, float, Model]]:
    """The points that no other beats in both numbers. More is better, but with `fewer` less of the first number is."""
    best: list[tuple[float, float, Model]] = []
    for point in sorted(points, key=lambda point: (point[0] if fewer else -point[0], -point[1])):
        if not best or point[1] > best[-1][1]:
            best.append(point)
    return best
