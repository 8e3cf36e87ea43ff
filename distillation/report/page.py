"""report.html: the run to explore in a browser, one file that needs nothing else.

The template page.html holds the page, its style and its script; this file puts the run's data into it as JSON.
"""

import json
import random
from pathlib import Path
from typing import Any

from shortstack.distillation.recipe import metric_key
from shortstack.distillation.report.run_files import RunFiles

TEMPLATE = Path(__file__).with_name("page.html")
PLACE = "RUN_DATA"  # in the template, where the data goes
PAIRS_PER_SET = 3000
BYTES_OF_PAIRS = 1_400_000  # all sets together; with the rest the page stays below 2 MB
CHARACTERS = 1000  # of a sentence that are shown
SURE_DIFFERENCES = 100  # pairs always shown: those where student and teacher differ most
CURVE_POINTS = 600  # as many as a screen can show


def report_page(files: RunFiles) -> str:
    """The page's text: the template with the run's data."""
    data = {
        "name": files.name,
        "headline": files.headline,
        "teacherName": files.recipe.get("teacher", ""),
        "models": {"student": files.student, "teacher": files.teacher},
        "results": [row._asdict() | {"lost": row.lost, "kept": row.kept} for row in files.rows],
        "pairs": {name: chosen_pairs(pairs, BYTES_OF_PAIRS // len(files.pairs)) for name, pairs in files.pairs.items()},
        "searches": [
            row._asdict() | {"kept": row.kept, "asymmetric_kept": row.asymmetric_kept} for row in files.searches
        ],
        "searchMean": files.search_mean._asdict() if files.search_mean else None,
        "missed": files.evaluation.get("missed", {}),
        "curves": curves(files),
        "evaluation": {
            "retrieval": files.evaluation.get("retrieval"),
            "overlap": files.evaluation.get("overlap"),
            "sanity": files.evaluation.get("sanity"),
            "bestStep": files.evaluation.get("best_step"),
            "negativeMse": files.evaluation.get("student", {}).get("negative_mse"),
        },
        "bench": files.bench,
        "benchCommand": files.bench_command,
        "data": files.data | {"samples": [sample[:CHARACTERS] for sample in files.data.get("samples", [])]},
        "recipe": files.settings,
        "changed": files.changed,
        "versions": files.versions,
    }
    return TEMPLATE.read_text(encoding="utf-8").replace(PLACE, script_safe(data), 1)


def script_safe(value: Any) -> str:
    """JSON that can't end the script element it stands in, whatever text it holds: no <, > or & is left in it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def chosen_pairs(pairs: dict[str, list[Any]], size_limit: int) -> dict[str, Any]:
    """A set's pairs for the page: all, or where they are too many the greatest differences and a random choice.

    Args:
        pairs: the set in evaluation_pairs.json: lists of sentences1, sentences2, human, student and perhaps teacher.
        size_limit: bytes that the sentences may take.

    Returns:
        `sentences`, each once; `rows` of [sentence, sentence, human, student, teacher or None], sentences by index
        in that list; `total`, the number of pairs before the choice.
    """
    student = pairs["student"]
    teacher = pairs.get("teacher") or [None] * len(student)

    def difference(row: int) -> float:
        return abs(student[row] - teacher[row]) if None not in (student[row], teacher[row]) else -1.0

    order = sorted(range(len(student)), key=difference, reverse=True)
    rest = order[SURE_DIFFERENCES:]
    random.Random(0).shuffle(rest)

    indices: dict[str, int] = {}
    chosen, size = [], 0
    for row in (order[:SURE_DIFFERENCES] + rest)[:PAIRS_PER_SET]:
        texts = [pairs[key][row][:CHARACTERS] for key in ("sentences1", "sentences2")]
        size += 40 + sum(len(script_safe(text).encode()) for text in set(texts) if text not in indices)
        if size > size_limit:
            break
        first, second = (indices.setdefault(text, len(indices)) for text in texts)
        figures = (pairs["human"][row], student[row], teacher[row])
        chosen.append([first, second, *(None if figure is None else round(figure, 4) for figure in figures)])
    return {"sentences": list(indices), "rows": chosen, "total": len(student)}


def curves(files: RunFiles) -> list[dict[str, Any]]:
    """The charts of the run over its steps: titles, and lines with a name, [step, value] points, teacher's value."""
    names = {metric_key(row.name, "spearman_cosine"): row for row in files.results}
    suffix = "_spearman_cosine"
    spearman = []
    for key in sorted({key for line in files.log for key in line if key.endswith(suffix)}):
        row = names.get(key)
        name, teacher = (row.name, row.teacher) if row else (key.removesuffix(suffix), None)
        spearman.append({"name": name, "points": series(files.log, key), "teacher": teacher})
    charts: dict[str, list[dict[str, Any]]] = {
        "Training loss": [{"name": "loss", "points": series(files.log, "loss")}],
        "Learning rate": [{"name": "learning rate", "points": series(files.log, "learning_rate")}],
        "Spearman with human scores": spearman,
        "Negative MSE to the teacher": [{"name": "negative MSE", "points": series(files.log, "negative_mse")}],
    }
    return [
        {"title": title, "lines": lines} for title, lines in charts.items() if any(line["points"] for line in lines)
    ]


def series(log: list[dict[str, Any]], key: str) -> list[list[float]]:
    """[step, value] of a figure in the log, averaged over neighbours where there are more than a screen can show."""
    points = [(line["step"], line[key]) for line in log if isinstance(line.get(key), int | float)]
    width = -(-len(points) // CURVE_POINTS) or 1
    buckets = [points[start : start + width] for start in range(0, len(points), width)]
    return [[bucket[-1][0], sum(value for _, value in bucket) / len(bucket)] for bucket in buckets]
