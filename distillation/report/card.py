"""The model card: README.md of the student, with the front matter that the Hub reads."""

import json
import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, try_to_load_from_cache

from distillation.data.sources import DATA_SUFFIXES
from distillation.report.run_files import RunFiles, SetResult

DEFAULT_TEACHER = "sentence-transformers/all-MiniLM-L6-v2"  # the embedded default: English, Apache-2.0
TAGS = ["sentence-transformers", "sentence-similarity", "feature-extraction", "distillation", "knowledge-distillation"]


# -- the front matter ------------------------------------------------------------------------------------------------


def hub_name(source: str) -> str | None:
    """OWNER/NAME of a Hub model or dataset, without what follows a colon; None for what is or looks like a file."""
    name = source.split(":", 1)[0]
    if name.endswith(DATA_SUFFIXES) or Path(name).exists():
        return None
    return name if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) else None


def base_model_of(teacher: str) -> str | None:
    """The teacher's name on the Hub, if it can be told."""
    if Path(teacher).name == "all-MiniLM-L6-v2":
        return DEFAULT_TEACHER
    return hub_name(teacher)


def teacher_card(teacher: str) -> ModelCardData | None:
    """The front matter of the teacher's own card, from its directory or the local Hub cache, not over the network."""
    path = Path(teacher) / "README.md"
    if not path.is_file():
        cached = try_to_load_from_cache(teacher, "README.md") if hub_name(teacher) else None
        path = Path(cached) if isinstance(cached, str) else path
    try:
        card = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True)
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return card.data if isinstance(card.data, ModelCardData) else None


def card_data(files: RunFiles) -> ModelCardData:
    """The front matter: what the Hub shows beside a card and finds the model by."""
    teacher = files.recipe.get("teacher", "")
    base_model, card = base_model_of(teacher), teacher_card(teacher)
    license, language = (card.get("license"), card.get("language")) if card else (None, None)
    if base_model == DEFAULT_TEACHER:
        license, language = "apache-2.0", "en"
    sources = [hub_name(source) for source in files.data.get("sources", {})]
    sts = files.recipe.get("sts", {})
    results = [result for row in files.results for result in eval_results(row, sts.get(row.name, ""))]
    return ModelCardData(
        language=language,
        license=license if license == "apache-2.0" else None,  # another licence is the publisher's to judge
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=TAGS,
        base_model=base_model,
        datasets=sorted({name for name in sources if name}) or None,
        metrics=["pearson_cosine", "spearman_cosine"] if results else None,
        model_name=files.name,
        eval_results=results or None,
    )


def eval_results(row: SetResult, source: str) -> list[EvalResult]:
    """A set's two correlations as entries of the model index; `source` is where the recipe took the set from."""
    _, config, split = (*source.split(":"), "", "")[:3] if hub_name(source) else ("", "", "")
    return [
        EvalResult(
            task_type="semantic-similarity",
            task_name="Semantic Similarity",
            dataset_type=hub_name(source) or row.name,
            dataset_config=config or None,
            dataset_split=split or None,
            dataset_name=row.name,
            metric_type=metric,
            metric_name=metric.replace("_", " ").title(),
            metric_value=round(value, 6),
        )
        for metric, value in (("pearson_cosine", row.student_pearson), ("spearman_cosine", row.student))
        if value is not None
    ]


# -- the card --------------------------------------------------------------------------------------------------------


def model_card(files: RunFiles, model_id: str | None = None) -> str:
    """The model card as the Hub reads it: YAML front matter and Markdown.

    Args:
        files: the run's files.
        model_id: the name to load the model by in the examples; None takes the run's own model directory.
    """
    where = json.dumps(model_id or f"{files.recipe.get('output', 'runs')}/{files.name}/model", ensure_ascii=False)
    sections = [
        introduction(files),
        architecture(files),
        usage(files, where),
        results_section(files),
        speed_section(files),
        data_section(files),
        hyperparameters(files),
        CITATIONS,
    ]
    text = "\n\n".join(section for section in sections if section)
    return f"---\n{card_data(files).to_yaml()}\n---\n\n{text}\n"


def markdown(value: Any) -> str:
    """Text that Markdown and HTML show as it is, on one line: anyone may have written a sentence or a setting."""
    text = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", text)


def table(header: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table; the first column is text, the others are numbers or short words. Cells are escaped here."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *([markdown(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float | None, form: str = ".4f") -> str:
    return "–" if value is None else format(value, form)


def introduction(files: RunFiles) -> str:
    base_model = base_model_of(files.recipe.get("teacher", ""))
    teacher = f"[{base_model}](https://huggingface.co/{base_model})" if base_model else "its teacher"
    layers = f"{files.student['layers']} layers"
    if files.teacher.get("layers"):
        layers = f"{files.student['layers']} of the {files.teacher['layers']} layers"
    dimensions = number(files.student["dimensions"], "d")
    text = (
        f"# {markdown(files.name)}\n\n"
        f"A sentence-embedding model with {layers} of {teacher}: a *student* whose layers were copied from this "
        f"*teacher* and then trained to give the teacher's embeddings. It maps sentences to vectors of {dimensions} "
        "dimensions, for semantic search, clustering and similarity."
    )
    return f"{text}\n\n**{files.headline}.**" if files.teacher else text


def architecture(files: RunFiles) -> str:
    kept = files.recipe.get("layers")
    rows: list[list[Any]] = [
        ["Architecture", files.config.get("model_type", "bert").upper()],
        ["Layers", number(files.student["layers"], "d")],
        ["Teacher's layers kept (from 0)", ", ".join(map(str, kept)) if isinstance(kept, list) else kept or "–"],
        ["Dimensions", number(files.student["dimensions"], "d")],
        ["Pooling", pooling_name(files.pooling)],
        ["Maximum length in tokens", number(files.transformer.get("max_seq_length"), "d")],
        ["Parameters", number(files.student.get("parameters"), ",d")],
    ]
    if files.teacher.get("parameters"):
        rows.append(["Teacher's parameters", number(files.teacher["parameters"], ",d")])
    return "## Architecture\n\n" + table(["", "Student"], rows)


def pooling_name(config: dict[str, Any]) -> str:
    """cls or mean, in the two spellings that pooling configs have."""
    if config.get("pooling_mode"):
        return str(config["pooling_mode"])
    modes = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}
    return " + ".join(name for key, name in modes.items() if config.get(key)) or "–"


def usage(files: RunFiles, where: str) -> str:
    prompt = next((name for name, text in files.prompts.items() if text), None)
    prompts = (
        f'\nSome texts take a prompt before them: `model.encode(queries, prompt_name={json.dumps(prompt)})`, here '
        f"“{markdown(files.prompts[prompt])}”.\n" if prompt else ""
    )  # fmt: skip
    return f"""## Usage

With [sentence-transformers](https://www.sbert.net):

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer({where})
embeddings = model.encode(["A man is playing a guitar.", "Someone plays an instrument.", "The market fell."])
print(embeddings.shape)  # (3, {files.student["dimensions"]})
print(model.similarity(embeddings, embeddings))
```

With Shortstack, the plain PyTorch project that made it:

```python
from model import Embedder

embedder = Embedder.load({where})
embeddings = embedder.encode(["A man is playing a guitar.", "Someone plays an instrument.", "The market fell."])
print(embedder.similarity(embeddings, embeddings))
```
{prompts}""".rstrip()


def results_section(files: RunFiles) -> str:
    if not files.results:
        return ""
    has_teacher = any(row.teacher is not None for row in files.results)
    rows = []
    for row in files.rows:
        cells: list[Any] = [row.name, number(row.pairs, ",d"), number(row.student), interval(row.student_interval)]
        cells += [number(row.teacher), number(row.kept, ".1%")] if has_teacher else []
        rows.append([*cells, number(row.student_pearson)])
    header = ["Set", "Pairs", "Spearman", "95% interval"]
    header += ["Teacher's Spearman", "Kept"] if has_teacher else []
    text = (
        "## Results\n\nCorrelation of the cosine similarity of two sentences with human judgement.\n\n"
        + table([*header, "Pearson"], rows)
    )  # fmt: skip
    negative_mse = files.evaluation["student"].get("negative_mse")
    if negative_mse is not None:
        text += (
            f"\n\nNegative mean squared error to the teacher's embeddings on held-out sentences: {negative_mse:.4f} "
            "(−100 × the mean over sentences and dimensions; 0 would be the teacher itself)."
        )
    return text


def interval(values: list[float] | None) -> str:
    return "–" if values is None else f"{values[0]:.4f} to {values[1]:.4f}"


def speed_section(files: RunFiles) -> str:
    if not files.speeds:
        return ""
    rows = [
        [speed.precision, f"{speed.student:,.0f}", f"{speed.teacher:,.0f}", f"{speed.student / speed.teacher:.2f}"]
        for speed in files.speeds
    ]
    device = files.bench.get("device", {}).get("name")
    return (
        f"## Speed\n\nSentences a second{f' on {markdown(device)}' if device else ''}.\n\n"
        + table(["Precision", "Student", "Teacher", "Speed-up"], rows)
    )  # fmt: skip


def data_section(files: RunFiles) -> str:
    data = files.data
    if not data:
        return ""
    tokens = data.get("tokens", {})
    rows = [
        ["Training sentences", number(data.get("size"), ",d")],
        ["Held out for evaluation", number(data.get("evaluation_size"), ",d")],
        ["Tokens a sentence: least", number(tokens.get("min"), "d")],
        ["Tokens a sentence: mean", number(tokens.get("mean"), ".1f")],
        ["Tokens a sentence: most", number(tokens.get("max"), "d")],
    ]
    rows += [[f"From {source}", number(count, ",d")] for source, count in data.get("sources", {}).items()]
    samples = [[number(place, "d"), shorten(sample)] for place, sample in enumerate(data.get("samples", []), start=1)]
    text = "## Training data\n\n" + table(["", "Number"], rows)
    return text + ("\n\nSamples:\n\n" + table(["", "Sentence"], samples).replace("---:", ":---") if samples else "")


def shorten(sentence: str, limit: int = 300) -> str:
    return sentence if len(sentence) <= limit else sentence[: limit - 1] + "…"


def hyperparameters(files: RunFiles) -> str:
    rows = [[key, json.dumps(value, ensure_ascii=False)] for key, value in files.settings.items()]
    text = "## Hyperparameters\n\n" + table(["Setting", "Value"], rows).replace("---:", ":---")
    if files.versions:
        versions: list[list[Any]] = [list(item) for item in files.versions.items()]
        text += "\n\n## Framework versions\n\n" + table(["Package", "Version"], versions)
    return text


CITATIONS = """## Citations

```bibtex
@inproceedings{reimers-2019-sentence-bert,
    title = "Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks",
    author = "Reimers, Nils and Gurevych, Iryna",
    booktitle = "Proceedings of the 2019 Conference on Empirical Methods in Natural Language Processing",
    year = "2019",
    url = "https://arxiv.org/abs/1908.10084",
}

@inproceedings{reimers-2020-multilingual-sentence-bert,
    title = "Making Monolingual Sentence Embeddings Multilingual using Knowledge Distillation",
    author = "Reimers, Nils and Gurevych, Iryna",
    booktitle = "Proceedings of the 2020 Conference on Empirical Methods in Natural Language Processing",
    year = "2020",
    url = "https://arxiv.org/abs/2004.09813",
}

@article{hinton-2015-distilling,
    title = "Distilling the Knowledge in a Neural Network",
    author = "Hinton, Geoffrey and Vinyals, Oriol and Dean, Jeff",
    journal = "arXiv preprint arXiv:1503.02531",
    year = "2015",
    url = "https://arxiv.org/abs/1503.02531",
}

@article{sanh-2019-distilbert,
    title = "DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter",
    author = "Sanh, Victor and Debut, Lysandre and Chaumond, Julien and Wolf, Thomas",
    journal = "arXiv preprint arXiv:1910.01108",
    year = "2019",
    url = "https://arxiv.org/abs/1910.01108",
}
```"""
