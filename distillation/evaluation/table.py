"""The figures of an evaluation as text."""

import math
from typing import Any

from shortstack.distillation.evaluation.retrieval import MEASURES


def number(value: float | None, form: str = ".4f") -> str:
    """A number in this format; a dash for one that was not measured, and for NaN, which JSON turns into None."""
    return format(value, form) if isinstance(value, (int, float)) and not math.isnan(value) else "–"


def share(value: float | None) -> str:
    """A share in per cent."""
    return number(value, ".1%")


def table(figures: dict[str, Any]) -> str:
    """The figures as text: a line per STS set, then retrieval and the distance to the teacher."""
    sets = {name: figure for name, figure in figures["student"].items() if isinstance(figure, dict)}
    width = max(map(len, [*sets, *figures.get("retrieval", {}), "STS set".ljust(16)]))
    lines = sts_lines(figures, list(sets), width) + retrieval_lines(figures, width)
    if "negative_mse" in figures["student"]:
        lines += distance_lines(figures)
    return "\n".join(lines)


def sts_lines(figures: dict[str, Any], names: list[str], width: int) -> list[str]:
    """A header, a line for each STS set, and their mean if there are several."""
    if not names:
        return []
    columns = f" {'teacher':>8} {'kept':>7}   difference" if "teacher" in figures else ""
    lines = [f"{'STS set':<{width}} {'pairs':>6} {'student Spearman':>29}{columns}"]
    for name in names:
        student = figures["student"][name]
        low, high = student["spearman_interval"]
        line = f"{name:<{width}} {student['pairs']:>6} {number(student['spearman_cosine']):>10}"
        line += f" {f'[{number(low)}, {number(high)}]':>18}"
        if "teacher" in figures:
            difference = figures["difference"][name]
            line += f" {number(figures['teacher'][name]['spearman_cosine']):>8} {share(figures['retention'][name]):>7}"
            line += (
                f"   {number(difference['spearman'], '+.4f')}, {'clear' if difference['clear'] else 'within the noise'}"
            )
        lines.append(line)
    if len(names) > 1:
        mean = {name: number(values["spearman_cosine"]) for name, values in figures["mean"].items()}
        lines.append(f"{'mean':<{width}} {'':>6} {mean['student']:>10} {'':>18} {mean.get('teacher', ''):>8}".rstrip())
    return lines


def retrieval_lines(figures: dict[str, Any], width: int) -> list[str]:
    """For each retrieval set a header and a line per system, found@10 first; then the means over several sets."""
    lines = []
    keys = (["found@10"] if "teacher" in figures else []) + list(MEASURES)
    for name, systems in figures.get("retrieval", {}).items():
        lines += ["", f"{name:<{width}} " + " ".join(f"{key:>10}" for key in keys)]
        for who, row in systems.items():
            cells = [number(row[key]) if key in row else "" for key in keys]
            line = f"  {who:<{width - 2}} " + " ".join(f"{cell:>10}" for cell in cells)
            if "difference" in row:
                clear = "clear" if row["difference"]["clear"] else "within the noise"
                line += f"   {share(row['kept'])} of the teacher's nDCG@10 kept, {clear}"
            elif "kept" in row:  # before training
                line += f"   {share(row['kept'])} of the teacher's nDCG@10"
            lines.append(line)
    means = figures.get("retrieval_mean", {})
    if means:
        lines += ["", f"mean of {len(figures['retrieval'])} retrieval sets"]
    for who, row in means.items():
        kept = f"{share(row['kept'])} of the teacher's nDCG@10 kept"
        lines.append(f"  {who:<{width - 2}} {number(row['found@10']):>10}   {kept}")
    return lines


def distance_lines(figures: dict[str, Any]) -> list[str]:
    """The distance to the teacher, and the neighbours found."""
    sanity, mse = figures["sanity"], figures["student"]["negative_mse"]
    lines = [
        "",
        f"negative MSE {number(mse)} (relative error {number(sanity['relative_error'])})",
        f"cosine to the teacher: mean {number(sanity['mean_cosine'])}, 5th percentile {number(sanity['p5_cosine'])}",
        f"agreement with the teacher on which sentences are similar: {number(sanity['agreement'])}",
    ]
    if "overlap" in figures:
        alone, over = figures["overlap"]["student"], figures["overlap"]["asymmetric"]
        low, high = alone["interval"]
        lines.append(
            f"overlap@10: of the teacher's ten nearest neighbours the student finds {share(alone['overlap@10'])} "
            f"[{share(low)}, {share(high)}], over the teacher's embeddings {share(over['overlap@10'])}"
        )
    return lines
