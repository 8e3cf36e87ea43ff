"""report.png: what a run gave, in four panels."""

import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from shortstack.distillation.evaluation.table import number
from shortstack.distillation.report.run_files import RunFiles, SetResult, shorten

# Okabe and Ito's palette (https://jfly.uni-koeln.de/color/), which colour-blind readers can tell apart; report.html too
STUDENT, TEACHER, LOST, GAINED = "#0072b2", "#e69f00", "#d55e00", "#009e73"
INK, FAINT, GRID = "#1f2933", "#5f6b7a", "#e3e7ec"
STYLE: dict[Any, Any] = {
    "font.size": 13,
    "text.color": INK,
    "text.parse_math": False,  # a set's name may have a $ in it
    "axes.labelcolor": FAINT,
    "axes.labelsize": 12.5,
    "axes.edgecolor": FAINT,
    "axes.titlesize": 15,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 14,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": FAINT,
    "ytick.color": INK,
    "legend.frameon": False,
}


# -- the figure ------------------------------------------------------------------------------------------------------


def figure(files: RunFiles) -> Figure:
    """The four panels, 1600 x 1200 pixels at 100 dots an inch."""
    with matplotlib.rc_context(STYLE):
        layout = ConstrainedLayoutEngine(w_pad=0.25, h_pad=0.25, wspace=0.04, hspace=0.04)
        picture = Figure(figsize=(16, 12), dpi=100, layout=layout, facecolor="white")
        title = "\n".join([shorten(files.name, 60), *textwrap.wrap(files.headline, 115)])
        picture.suptitle(title, fontsize=16, fontweight="bold")
        first: Callable[[Axes, RunFiles], None] = lost_panel
        if files.searches:
            first = found_panel if files.searches[0].found is not None else search_panel
        panels = [first, correlation_panel, speed_panel, scatter_panel]
        for axes, draw in zip(picture.subplots(2, 2).flat, panels, strict=True):
            draw(axes, files)
        meanings = {"student": STUDENT, "teacher": TEACHER}
        if files.searches:
            meanings["student's queries, teacher's documents"] = GAINED
        else:
            meanings |= {"student worse": LOST, "student better": GAINED}
        handles = [Patch(color=colour, label=label) for label, colour in meanings.items()]
        picture.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return picture


def scatter_panel(axes: Axes, files: RunFiles) -> None:
    """Each pair's cosine similarity by the student against its human score."""
    shown = shown_set(files)
    pairs = files.pairs.get(shown.name, {}) if shown else {}
    both = zip(pairs.get("human", []), pairs.get("student", []), strict=True)
    points = [point for point in both if None not in point]
    if shown is None or not points:
        return say(axes, "Predicted and human similarity", "No sentence pairs.\nGive evaluate.py some: --sts NAME=PATH")
    human, cosine = zip(*points, strict=True)
    alpha = max(0.12, min(0.6, 300 / len(points)))
    axes.scatter(human, cosine, s=26, color=STUDENT, alpha=alpha, linewidths=0, rasterized=True)
    axes.set_title(f"{shorten(shown.name)}: student's Spearman {format_number(shown.student)}")
    axes.set(xlabel=f"human similarity ({len(points):,} pairs)", ylabel="cosine similarity by the student")


def correlation_panel(axes: Axes, files: RunFiles) -> None:
    """Spearman of student and teacher for each set, with intervals."""
    title = "Spearman with human scores"
    results = [result for result in files.results if result.student is not None]
    if not results:
        return say(axes, title, "No STS sets.\nGive evaluate.py some: --sts NAME=PATH")
    has_teacher = any(result.teacher is not None for result in results)
    reach = [0.0]
    for y, result in enumerate(results):
        bars = [Bar(result.student, result.student_interval, STUDENT, format_number(result.student))]
        if has_teacher:
            bars.append(Bar(result.teacher, result.teacher_interval, TEACHER, format_number(result.teacher)))
        reach += draw_bars(axes, y, bars)
    name_rows(axes, [result.name for result in results])
    axes.set_xlim(min(reach) * 1.1, max(reach) * 1.12 + 0.02)
    axes.set_title(title + (", 95% intervals" if any(result.student_interval for result in results) else ""))
    axes.set_xlabel("Spearman correlation (1 would be people's own order)")


def speed_panel(axes: Axes, files: RunFiles) -> None:
    """Sentences a second of student and teacher in each precision."""
    speeds = files.speeds
    if not speeds:
        return say(axes, "Speed", f"Not measured yet. Measure it with\n{files.bench_command}")
    for y, speed in enumerate(speeds):
        rates = (speed.student, STUDENT), (speed.teacher, TEACHER)
        draw_bars(axes, y, [Bar(rate, None, colour, f"{rate:,.0f}") for rate, colour in rates])
    name_rows(axes, [speed.precision for speed in speeds])
    axes.set_xlim(0, max(max(speed.teacher, speed.student) for speed in speeds) * 1.15)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    ratio, bound = files.bench.get("student_speedup"), files.bench.get("layer_ratio")
    axes.set_title(
        (f"Speed: {ratio:.2f} times the teacher's" if ratio else "Speed")
        + (f"; layer ratio {bound:.2f}" if ratio and bound else "")
    )
    device = files.bench.get("device", {}).get("name")
    axes.set_xlabel("sentences a second" + (f" on {shorten(device, 48)}" if device else ""))


def found_panel(axes: Axes, files: RunFiles) -> None:
    """found@10 of the student and of its queries over the teacher's documents, with intervals; nDCG@10 in words."""
    for y, search in enumerate(files.searches):
        bars = [
            (search.found, search.found_interval, STUDENT, search.student),
            (search.asymmetric_found, search.asymmetric_found_interval, GAINED, search.asymmetric),
        ]
        of_teacher = format_number(search.teacher)
        draw_bars(axes, y, [
            Bar(share, interval, colour, f"{share or 0:.0%}; nDCG@10 {format_number(gain)} of {of_teacher}")
            for share, interval, colour, gain in bars
        ], size=label_size(files))  # fmt: skip
    name_rows(axes, [search.name for search in files.searches])
    axes.set_xlim(0, 1.6)  # room for the words
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    with_interval = any(search.found_interval for search in files.searches)
    axes.set_title("Search: found of the teacher's first ten" + (", 95% intervals" if with_interval else ""))
    axes.set_xlabel("found@10 (100% would be the teacher's own first ten documents)")


def search_panel(axes: Axes, files: RunFiles) -> None:
    """nDCG@10 of the student, with intervals: where it was evaluated without its teacher."""
    reach = [0.0]
    for y, search in enumerate(files.searches):
        bar = Bar(search.student, search.student_interval, STUDENT, format_number(search.student))
        reach += draw_bars(axes, y, [bar], size=label_size(files))
    name_rows(axes, [search.name for search in files.searches])
    axes.set_xlim(0, max(reach) * 1.2 + 0.02)  # room for the words
    axes.set_title("Search: what is found" + (", 95% intervals" if files.searches[0].student_interval else ""))
    axes.set_xlabel("nDCG@10 (1 would be every relevant document first)")


def label_size(files: RunFiles) -> float:
    """Size of the words beside bars of retrieval sets: smaller where there are many."""
    return 11.5 if len(files.searches) < 6 else 8.5


def lost_panel(axes: Axes, files: RunFiles) -> None:
    """Teacher minus student for each set, in points of Spearman."""
    rows = [(row, row.lost) for row in files.results if row.lost is not None]
    if not rows:
        reason = "No teacher to compare with.\nGive evaluate.py one: --teacher T" if files.results else "No STS sets."
        return say(axes, "What is lost, per set", reason)
    reach = [0.0]
    for y, (row, lost) in enumerate(rows):
        low, high = row.lost_interval or (lost, lost)
        axes.barh(y, lost, 0.6, color=LOST if lost > 0 else GAINED)
        if row.lost_interval:
            whisker(axes, low, high, y)
        reach += [low, high, lost]
    width = max(max(reach) - min(reach), 0.5)
    for y, (row, lost) in enumerate(rows):
        low, high = row.lost_interval or (lost, lost)
        text = f"{lost:+.1f}".replace("-", "−")
        if lost > 0:
            axes.text(max(high, lost) + width * 0.015, y, text, va="center", fontsize=11.5)
        else:
            axes.text(min(low, lost) - width * 0.015, y, text, va="center", ha="right", fontsize=11.5)
    name_rows(axes, [row.name for row, _ in rows])
    axes.axvline(0, color=INK, linewidth=1.2)
    axes.set_xlim(min(reach) - width * (0.14 if min(reach) < 0 else 0.02), max(reach) + width * 0.14)
    axes.set_title(mean_lost(files.mean))
    axes.set_xlabel("points of Spearman lost: 100 × (teacher − student)")


def mean_lost(mean: SetResult | None) -> str:
    if mean is None or mean.lost is None:
        return "What is lost, per set"
    return f"What is {'lost' if mean.lost > 0 else 'gained'}, per set: {abs(mean.lost):.1f} points on average"


# -- helpers of the panels -------------------------------------------------------------------------------------------


def shown_set(files: RunFiles) -> SetResult | None:
    """The set for the scatter panel: the last one called a test, else the first."""
    tests = [row for row in files.results if "test" in row.name.lower()]
    chosen = tests[-1:] or files.results[:1]
    return chosen[0] if chosen else None


def say(axes: Axes, title: str, text: str) -> None:
    """Say in a panel without data what is missing and how to get it."""
    axes.set_axis_off()
    axes.set_title(title)
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, 60)]
    axes.text(0.5, 0.5, "\n".join(lines), ha="center", va="center", color=FAINT, transform=axes.transAxes)


class Bar(NamedTuple):
    """A horizontal bar, its interval, its colour and the words beside it; None where nothing was measured."""

    value: float | None
    interval: list[float] | None
    colour: str
    text: str


def draw_bars(axes: Axes, y: float, bars: Sequence[Bar], size: float = 11.5) -> list[float]:
    """Draw the bars of row y, the first above the others; returns where they and their intervals end."""
    height = 0.72 / len(bars) if len(bars) > 1 else 0.6
    reach = []
    for place, bar in enumerate(bars):
        if bar.value is None:
            continue
        middle = y + (place - (len(bars) - 1) / 2) * height
        axes.barh(middle, bar.value, height, color=bar.colour)
        low, high = bar.interval or (bar.value, bar.value)
        if bar.interval:
            whisker(axes, low, high, middle)
        end = (max(high, 0), middle)
        axes.annotate(bar.text, end, (5, 0), textcoords="offset points", va="center", fontsize=size)
        reach += [low, high]
    return reach


def whisker(axes: Axes, low: float, high: float, y: float) -> None:
    """An interval over a horizontal bar."""
    axes.errorbar((low + high) / 2, y, xerr=(high - low) / 2, color=INK, capsize=3, linewidth=1.3)


def name_rows(axes: Axes, names: list[str]) -> None:
    """Names beside horizontal bars, the first at the top."""
    axes.set_yticks(range(len(names)), [shorten(name) for name in names])
    middle, half = (len(names) - 1) / 2, max(len(names), 2) / 2 + 0.1  # one row alone gets no giant bar
    axes.set_ylim(middle + half, middle - half)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)


def format_number(value: float | None) -> str:
    return number(value, ".3f").replace("-", "−")
