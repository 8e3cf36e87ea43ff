"""What a run left in its directory, read and checked: what the figure, the page and the model card are made from."""

import dataclasses
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from shortstack.distillation.evaluation.own import NAME as OWN_DOCUMENTS
from shortstack.distillation.evaluation.own import verdict
from shortstack.distillation.prepare.judged import SETS
from shortstack.distillation.recipe import Recipe
from shortstack.distillation.run import read_json_lines
from shortstack.model.files import InputError, read_json

ABOVE_ALL = (
    "More than 100% is no mistake: Spearman compares with people's judgement, not with the teacher, and on words "
    "without context a student of few layers can be closer to people than its teacher is."
)


class SetResult(NamedTuple):
    """One STS set's figures: correlations of cosine similarity with human scores, None where not measured."""

    name: str
    pairs: int | None
    student: float | None  # Spearman
    student_interval: list[float] | None
    student_pearson: float | None
    teacher: float | None
    teacher_interval: list[float] | None
    teacher_pearson: float | None
    lost_interval: list[float] | None  # of `lost`, in points

    @property
    def lost(self) -> float | None:
        """Teacher minus student in points of Spearman (1 point = 0.01); negative where the student is better."""
        return None if self.student is None or self.teacher is None else 100 * (self.teacher - self.student)

    @property
    def kept(self) -> float | None:
        """Student over teacher: the share of the teacher's Spearman that is kept."""
        return share_of(self.student, self.teacher)


class SearchResult(NamedTuple):
    """One retrieval set's figures, None where not measured: alone, and the student's queries in the teacher's index.

    `student`, `asymmetric` and `teacher` are nDCG@10; `..._found` are found@10: the share of the teacher's first ten
    documents of a query that are among the student's first ten.
    """

    name: str
    student: float | None
    student_interval: list[float] | None
    asymmetric: float | None
    asymmetric_interval: list[float] | None
    teacher: float | None
    teacher_interval: list[float] | None
    found: float | None
    found_interval: list[float] | None
    asymmetric_found: float | None
    asymmetric_found_interval: list[float] | None
    own: bool  # of the user, not of those that come with the project

    @property
    def kept(self) -> float | None:
        """Student over teacher: the share of the teacher's nDCG@10 that the student alone keeps."""
        return share_of(self.student, self.teacher)

    @property
    def asymmetric_kept(self) -> float | None:
        """The share that the student's queries find among the teacher's documents."""
        return share_of(self.asymmetric, self.teacher)


class Speed(NamedTuple):
    """Sentences a second of teacher and student, measured in one precision."""

    precision: str
    teacher: float
    student: float


@dataclass
class RunFiles:
    """The files of a run directory. NaN and infinity are read as None; a file that may be missing then is empty."""

    directory: Path
    recipe: dict[str, Any]
    evaluation: dict[str, Any]
    pairs: dict[str, dict[str, list[Any]]]
    bench: dict[str, Any]
    data: dict[str, Any]
    log: list[dict[str, Any]]
    config: dict[str, Any]  # the student's config.json
    pooling: dict[str, Any]
    transformer: dict[str, Any]  # sentence_bert_config.json
    prompts: dict[str, str]

    @classmethod
    def read(cls, directory: Path) -> "RunFiles":
        """Read a run directory."""
        if not (directory / "recipe.toml").is_file():
            raise InputError(f"{directory}: no run directory, recipe.toml is missing; make one with `python train.py`")
        try:
            recipe = tomllib.loads((directory / "recipe.toml").read_text(encoding="utf-8"))
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise InputError(f"{directory / 'recipe.toml'}: not TOML ({error})") from None
        model = directory / "model"
        if not any((model / name).is_file() for name in ("config.json", "modules.json")):
            raise InputError(f"{model}: no student there; finish the run with `python train.py {directory} --resume`")
        if not (directory / "evaluation.json").is_file():
            teacher = recipe.get("teacher", "TEACHER")
            raise InputError(
                f"{directory / 'evaluation.json'}: no such file; "
                f"make it with `python evaluate.py {model} --teacher {teacher} --sts NAME=PATH`"
            )
        return cls(
            directory=directory,
            recipe=clean(recipe),
            evaluation=read_object(directory / "evaluation.json"),
            pairs=read_object(directory / "evaluation_pairs.json"),
            bench=read_object(directory / "bench.json"),
            data=read_object(directory / "data.json"),
            log=read_log(directory / "log.jsonl"),
            config=read_object(model / "config.json"),
            pooling=read_object(model / "1_Pooling" / "config.json"),
            transformer=read_object(model / "sentence_bert_config.json"),
            prompts=read_object(model / "config_sentence_transformers.json").get("prompts") or {},
        )

    @property
    def name(self) -> str:
        return self.recipe.get("name") or self.directory.resolve().name

    @property
    def versions(self) -> dict[str, str]:
        return self.recipe.get("versions", {})

    @property
    def settings(self) -> dict[str, Any]:
        """The recipe's fields, without the package versions."""
        return {key: value for key, value in self.recipe.items() if key != "versions"}

    @property
    def changed(self) -> dict[str, Any]:
        """The settings that differ from the recipe's defaults."""
        defaults = dataclasses.asdict(Recipe())
        return {key: value for key, value in self.settings.items() if value != defaults.get(key)}

    @property
    def layers_kept(self) -> tuple[str, str]:
        """Whose layers the student was made of, and their numbers from 0, or the strategy that chose them.

        The teacher's where the run knows them, also through a chain of students; else those of the student that it
        started from.
        """
        layers, start = self.data.get("teacher_layers"), self.recipe.get("start_from")
        owner = "the teacher"
        if layers is None:
            layers, owner = self.recipe.get("layers"), start or owner
        if layers == []:
            return owner, "none"
        return owner, ", ".join(map(str, layers)) if isinstance(layers, list) else str(layers or "–")

    @property
    def copied_from(self) -> str:
        """The teacher; where only its vectors are known (`teacher_vectors`), the encoder started from."""
        return str(self.recipe.get("start_from" if self.recipe.get("teacher_vectors") else "teacher") or "TEACHER")

    @property
    def bench_command(self) -> str:
        """What measures the speed."""
        return f"python bench.py {self.directory / 'model'} --teacher {self.copied_from}"

    @property
    def student(self) -> dict[str, Any]:
        """layers, dimensions and parameters (None if unknown) of the student."""
        known = {"layers": self.config.get("num_hidden_layers"), "dimensions": self.config.get("hidden_size")}
        return known | self.evaluation.get("models", {}).get("student", {})

    @property
    def teacher(self) -> dict[str, Any]:
        """layers, dimensions and parameters of the teacher; empty if it was not evaluated."""
        return self.evaluation.get("models", {}).get("teacher", {})

    @cached_property
    def results(self) -> list[SetResult]:
        """The figures of each STS set, in the order they were evaluated."""
        evaluation, results = self.evaluation, []
        for name, student in evaluation.get("student", {}).items():
            if isinstance(student, dict):  # the others are numbers, such as negative_mse
                figures = [
                    (of.get("spearman_cosine"), interval_of(of.get("spearman_interval")), of.get("pearson_cosine"))
                    for of in (student, evaluation.get("teacher", {}).get(name, {}))
                ]
                gained = interval_of(evaluation.get("difference", {}).get(name, {}).get("interval"))
                lost = None if gained is None else [-100 * gained[1], -100 * gained[0]]
                results.append(SetResult(name, student.get("pairs"), *figures[0], *figures[1], lost))
        return results

    @cached_property
    def searches(self) -> list[SearchResult]:
        """The figures of each retrieval set: the user's documents, the user's other sets, then those of the project."""
        searches = []
        sources = self.recipe.get("retrieval", {})
        for name, systems in (self.evaluation.get("retrieval") or {}).items():
            figures = [systems.get(who) or {} for who in ("student", "asymmetric", "teacher")]
            gains = [(values.get("ndcg@10"), interval_of(values.get("interval"))) for values in figures]
            shares = [(values.get("found@10"), interval_of(values.get("found@10_interval"))) for values in figures]
            own = "assets" not in Path(sources[name]).parts if name in sources else name not in ("wikipedia", *SETS)
            searches.append(SearchResult(name, *gains[0], *gains[1], *gains[2], *shares[0], *shares[1], own))
        return sorted(searches, key=lambda search: (search.name != OWN_DOCUMENTS, not search.own))

    @cached_property
    def search_mean(self) -> SearchResult | None:
        """The user's documents; else the mean over the user's sets, or over all where none is; None without sets."""
        sets = [search for search in self.searches if search.name == OWN_DOCUMENTS]
        sets = sets or [search for search in self.searches if search.own] or self.searches
        if not sets:
            return None
        keys = ("student", "asymmetric", "teacher", "found", "asymmetric_found")
        means: dict[str, Any] = {key: mean_of(sets, key) for key in keys} | {f"{key}_interval": None for key in keys}
        name = sets[0].name if len(sets) == 1 else f"{len(sets)} sets"
        return SearchResult(name=name, own=sets[0].own, **means)

    @cached_property
    def kept(self) -> list[tuple[float, str]]:
        """The share kept of every figure of the teacher, and which figure, the worst first."""
        shares = [(row.kept, f"search on {row.name}") for row in self.searches]
        shares += [(row.kept, f"Spearman on {row.name}") for row in self.results]
        return sorted((share, what) for share, what in shares if share is not None)

    @property
    def above_all(self) -> bool:
        """Whether the student is better than the teacher somewhere, which needs an explanation."""
        return bool(self.kept) and self.kept[-1][0] > 1

    @cached_property
    def mean(self) -> SetResult | None:
        """The mean over the sets that both models have, or all of the student's where there is no teacher."""
        compared = [result for result in self.results if result.kept is not None] or self.results
        if not compared:
            return None
        keys = ("student", "student_pearson", "teacher", "teacher_pearson")
        means: dict[str, Any] = {key: mean_of(compared, key) for key in keys}
        unknown: dict[str, Any] = dict.fromkeys(("pairs", "student_interval", "teacher_interval", "lost_interval"))
        return SetResult(name="mean", **means, **unknown)

    @property
    def rows(self) -> list[SetResult]:
        """The results as tables show them: a row for each set, then the mean."""
        return [*self.results, self.mean] if self.mean else []

    @cached_property
    def speeds(self) -> list[Speed]:
        """Teacher and student in each precision that both were measured in."""
        rates: dict[str, dict[str, float]] = {}
        for row in self.bench.get("rows", []):
            if row.get("system") in ("teacher", "student") and row.get("sentences_per_second"):
                rates.setdefault(row.get("precision") or "fp32", {})[row["system"]] = row["sentences_per_second"]
        return [Speed(precision, **pair) for precision, pair in rates.items() if len(pair) == 2]

    @property
    def headline(self) -> str:
        """The run in a line: search on the user's documents, layers, search, what is kept and how fast it is."""
        layers = f"{self.student['layers']} layers"
        if self.teacher.get("layers"):
            layers = f"{self.student['layers']} of {self.teacher['layers']} layers"
        own = verdict(self.evaluation)
        parts = [f"{own}; {layers}" if own else layers]
        search = self.search_mean
        if search is not None and not own and search.found is not None:
            parts.append(f"search on {search.name} finds {search.found:.1%} of the teacher's first ten documents")
        if self.kept:
            worst, what = self.kept[0]
            others = [f"{share:.1%}" for share, _ in self.kept[1:]]
            elsewhere = f", elsewhere {' to '.join(dict.fromkeys([others[0], others[-1]]))}" if others else ""
            parts.append(f"keeps {worst:.1%} of the teacher's {what}{elsewhere}")
        if self.bench.get("student_speedup"):
            parts.append(f"{self.bench['student_speedup']:.2f} times as fast")
        return ", ".join(parts)


def shorten(text: str, limit: int = 22) -> str:
    """The text, cut to so many characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def mean_of(results: Sequence[Any], key: str) -> float | None:
    """The mean of a figure; None where one of the results has none."""
    values = [getattr(result, key) for result in results]
    return None if None in values else sum(values) / len(values)


def share_of(part: float | None, whole: float | None) -> float | None:
    """Part over whole; None where either was not measured, or the whole is 0."""
    return None if part is None or not whole else part / whole


def interval_of(values: list[float | None] | None) -> list[float] | None:
    """[low, high], or None where either was not measured."""
    known = [value for value in values or [] if value is not None]
    return known if len(known) == 2 else None


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; {} where the file is missing, InputError where it holds anything else."""
    if not path.is_file():
        return {}
    value = clean(read_json(path))
    if not isinstance(value, dict):
        raise InputError(f"{path}: must hold a JSON object; write it again")
    return value


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of log.jsonl, one for every step; where a step comes twice, later figures replace earlier ones."""
    steps: dict[int, dict[str, Any]] = {}
    for value in read_json_lines(path) if path.is_file() else []:
        if type(value.get("step")) is int:
            steps.setdefault(value["step"], {}).update(clean(value))
    return [steps[step] for step in sorted(steps)]


def clean(value: Any) -> Any:
    """The same JSON value, fit to be written anywhere: NaN and infinity as None, text as valid Unicode."""
    if isinstance(value, dict):
        return {clean(key): clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [clean(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")  # JSON can hold half a surrogate pair, UTF-8 cannot
    return value
