"""The model card: README.md of the student. card.md is its template; this file gives the front matter and values."""

import json
import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import (
    EvalResult,
    EvalResultEntry,
    ModelCard,
    ModelCardData,
    eval_result_entries_to_yaml,
    metadata_load,
    try_to_load_from_cache,
)

from shortstack.distillation.data.sources import DATA_SUFFIXES, split_marks
from shortstack.distillation.evaluation.table import number
from shortstack.distillation.report.run_files import ABOVE_ALL, RunFiles, shorten

PREPARED = ("all-MiniLM-L6-v2", "all-mpnet-base-v2")  # sentence-transformers' own: English, Apache-2.0
TEMPLATE = Path(__file__).with_name("card.md")
MEASURES = ("found@10", "ndcg@10", "mrr@10", "recall@1", "recall@10")
TAGS = ["sentence-transformers", "sentence-similarity", "feature-extraction", "distillation", "knowledge-distillation"]


# -- the front matter ------------------------------------------------------------------------------------------------


def hub_name(source: str) -> str | None:
    """OWNER/NAME of a Hub model or dataset, without what follows a colon; None for a file, or what looks like one."""
    name = split_marks(source)[1].split(":", 1)[0]
    if name.endswith(DATA_SUFFIXES) or Path(name).exists():
        return None
    return name if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) else None


def base_model_of(teacher: str) -> str | None:
    """The teacher's name on the Hub, if it is known."""
    if Path(teacher).name in PREPARED:
        return f"sentence-transformers/{Path(teacher).name}"
    return hub_name(teacher)


def teacher_metadata(teacher: str) -> dict[str, Any]:
    """The front matter of the teacher's own card, from its directory or the local Hub cache, not over the network."""
    path = Path(teacher) / "README.md"
    if not path.is_file():
        cached = try_to_load_from_cache(teacher, "README.md") if hub_name(teacher) else None
        path = Path(cached) if isinstance(cached, str) else path
    try:
        return (metadata_load(path) if teacher else None) or {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def card_data(files: RunFiles) -> ModelCardData:
    """The front matter: what the Hub shows beside a card and uses in its search."""
    base_model, metadata = base_model_of(files.copied_from), teacher_metadata(files.copied_from)
    license, language = metadata.get("license"), metadata.get("language")
    if base_model in [f"sentence-transformers/{name}" for name in PREPARED]:
        license, language = "apache-2.0", "en"
    sources = [hub_name(source) for source in files.data.get("sources", {})]
    results = [result for measured in measured_sets(files) for result in eval_results(*measured)]
    return ModelCardData(
        language=language,
        license=license if license == "apache-2.0" else None,  # of another licence the publisher must decide
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=TAGS,
        base_model=base_model,
        datasets=sorted({name for name in sources if name}) or None,
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=files.name,
        eval_results=results or None,
    )


def measured_sets(files: RunFiles) -> list[tuple[str, str, str, dict[str, float | None]]]:
    """For every set: kind, name, its source in the recipe ("" if it is not there), and figures by metric."""
    sts, retrieval = files.recipe.get("sts", {}), files.recipe.get("retrieval", {})
    sets: list[tuple[str, str, str, dict[str, float | None]]] = []
    for row in files.searches:
        figures = {f"cosine_{key}": files.evaluation["retrieval"][row.name]["student"].get(key) for key in MEASURES}
        sets.append(("information-retrieval", row.name, retrieval.get(row.name, ""), figures))
    for sts_set in files.results:
        correlations = {"pearson_cosine": sts_set.student_pearson, "spearman_cosine": sts_set.student}
        sets.append(("semantic-similarity", sts_set.name, sts.get(sts_set.name, ""), correlations))
    return sets


def eval_results(kind: str, name: str, source: str, figures: dict[str, float | None]) -> list[EvalResult]:
    """A set's figures as entries of the model index; see `measured_sets`."""
    config, split = config_and_split(source)
    return [
        EvalResult(
            task_type=kind,
            task_name=kind.replace("-", " ").title(),
            dataset_type=hub_name(source) or name,
            dataset_config=config or None,
            dataset_split=split or None,
            dataset_name=name,
            metric_type=metric,
            metric_name=metric.replace("_", " ").title(),
            metric_value=round(value, 6),
        )
        for metric, value in figures.items()
        if value is not None
    ]


def config_and_split(source: str) -> tuple[str, str]:
    """Config and split of a Hub dataset NAME:CONFIG:SPLIT; empty if not given, or for a file."""
    _, config, split = (*source.split(":"), "", "")[:3] if hub_name(source) else ("", "", "")
    return config, split


def eval_result_files(files: RunFiles) -> dict[str, str]:
    """The Hub's newer form beside the model index: .eval_results/NAME.yaml, by file name, one for each Hub dataset.

    Sets from local files have no page that a result could be shown on, and get none.

    Source: https://huggingface.co/docs/hub/eval-results.
    """
    texts = {}
    for kind, name, source, figures in measured_sets(files):
        metric = "cosine_ndcg@10" if kind == "information-retrieval" else "spearman_cosine"
        dataset, value = hub_name(source), figures[metric]
        if dataset is None or value is None:
            continue
        config, split = config_and_split(source)
        notes = metric + (f", split {split}" if split else "")
        entry = EvalResultEntry(dataset, config or "default", round(value, 6), notes=notes)
        texts[f"{name}.yaml"] = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)
    return texts


# -- the card --------------------------------------------------------------------------------------------------------


def model_card(files: RunFiles, model_id: str | None = None) -> str:
    """The model card as the Hub reads it: YAML front matter and Markdown.

    Its examples load `model_id`, or the run's own model directory.
    """
    recipe, student, teacher = files.recipe, files.student, files.teacher
    base_model = base_model_of(files.copied_from)
    unknown = "another encoder" if recipe.get("teacher_vectors") else "its teacher"
    owner, layers_kept = files.layers_kept
    prompts = [(code(f"model.encode(queries, prompt_name={as_json(name)})"), prompt)
               for name, prompt in files.prompts.items() if prompt]  # fmt: skip
    card = ModelCard.from_template(
        card_data(files),
        template_path=str(TEMPLATE),
        files=files,
        layers=f"{student['layers']} of the {teacher['layers']} layers" if teacher else f"{student['layers']} layers",
        teacher_link=f"[{base_model}](https://huggingface.co/{base_model})" if base_model else unknown,
        layers_owner="Teacher's layers" if owner == "the teacher" else f"Layers of {owner}",
        layers_kept=layers_kept,
        pooling=pooling_name(files.pooling),
        where=as_json(model_id or str(files.directory / "model")),
        prompts=prompts[:1],
        device=files.bench.get("device", {}).get("name"),
        tokens=files.data.get("tokens", {}),
        above_all=ABOVE_ALL,
        has_teacher=any(row.teacher is not None for row in files.results),
        text=markdown,
        number=number,
        interval=interval,
        shorten=shorten,
        json=as_json,
    )
    return str(card) + "\n"


def markdown(value: Any) -> str:
    """Text that Markdown and HTML show as it is, on one line: anyone may have written a sentence or a setting."""
    text = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", text)


def code(text: str) -> str:
    """Text as a code span on one line, whatever backticks it holds."""
    text = " ".join(text.split())
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    room = " " if "`" in text else ""
    return f"{fence}{room}{text}{room}{fence}"


def interval(values: list[float] | None) -> str:
    return "–" if values is None else f"{values[0]:.4f} to {values[1]:.4f}"


def as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def pooling_name(config: dict[str, Any]) -> str:
    """cls or mean, in the two spellings that pooling configs have."""
    if config.get("pooling_mode"):
        return str(config["pooling_mode"])
    modes = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}
    return " + ".join(name for key, name in modes.items() if config.get(key)) or "–"
