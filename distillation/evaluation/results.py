"""evaluation.json and evaluation_pairs.json: a new evaluation is merged into earlier ones of the same models."""

import math
from pathlib import Path
from typing import Any

from shortstack.distillation.evaluation.judge import with_means
from shortstack.model.files import InputError, read_json, write_json

BY_SET = ("student", "teacher", "retention", "difference", "retrieval", "missed")
OF_TRAINING = ("labels_relative_difference", "warnings")  # in "sanity"

Results = tuple[dict[str, Any], dict[str, Any]]


def read_results(directory: Path) -> Results:
    """The content of the two files; empty if there are none."""
    figures, pairs = (
        read_json(path) if path.exists() else {}
        for path in (directory / "evaluation.json", directory / "evaluation_pairs.json")
    )
    whole = isinstance(figures, dict) and all(isinstance(figures.get(key, {}), dict) for key in (*BY_SET, "sanity"))
    if whole:
        retrieval = figures.get("retrieval", {})
        whole = all(map(is_table, [figures.get("models", {}), retrieval, *retrieval.values()]))
    for path, good in (("evaluation.json", whole), ("evaluation_pairs.json", isinstance(pairs, dict))):
        if not good:
            raise InputError(f"{directory / path}: not as evaluate.py writes it; delete it or choose another --output")
    return figures, pairs


def is_table(value: Any) -> bool:
    """Whether a JSON value is an object of objects."""
    return isinstance(value, dict) and all(isinstance(row, dict) for row in value.values())


def merged(old: Results, new: Results) -> Results:
    """A new evaluation over an old one.

    Sets that only the old one has are kept if student, teacher and their precisions are the same. best_step and the
    warnings, which come from training, are kept if the student's weights are the same.
    """
    (before, pairs_before), (figures, pairs) = old, new
    if weights_of(before).get("student", ("",))[0] != weights_of(figures)["student"][0]:
        return new
    of_training = {key: value for key, value in before.get("sanity", {}).items() if key in OF_TRAINING}
    result = dict(figures)
    if weights_of(before) == weights_of(figures):
        result = before | figures
        for key in (*BY_SET, "sanity"):
            if key in before or key in figures:
                result[key] = before.get(key, {}) | figures.get(key, {})
        result, pairs = with_means(result), pairs_before | pairs
    for name, systems in result.get("retrieval", {}).items():
        earlier = before.get("retrieval", {}).get(name, {})
        if "before" in earlier and weights_of(before) == weights_of(figures):  # of the model that training started from
            result["retrieval"][name] = systems | {"before": earlier["before"]}
    if of_training:
        result["sanity"] = result.get("sanity", {}) | of_training
    if "best_step" in before:
        result["best_step"] = before["best_step"]
    return result, pairs


def weights_of(figures: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """SHA-256 of the weights, and precision, of student and teacher, as far as they are known."""
    models = figures.get("models", {})
    return {who: (model["weights"], model.get("precision")) for who, model in models.items() if "weights" in model}


def write_results(directory: Path, results: Results) -> None:
    """Write both files; NaN and infinity, which JSON does not have, become null."""
    for name, value in zip(("evaluation.json", "evaluation_pairs.json"), results, strict=True):
        write_json(directory / name, finite(value))


def finite(value: Any) -> Any:
    """A copy for JSON: numbers that are not finite become None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
