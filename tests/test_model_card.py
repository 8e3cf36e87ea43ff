"""The model card: front matter as huggingface_hub's own parser reads it, and a body that no sentence can break."""

import copy
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData, parse_eval_result_entries
from test_report import BENCH, EVALUATION, correlations

from shortstack.distillation.report.card import base_model_of, eval_result_files, hub_name, markdown, model_card
from shortstack.distillation.report.run_files import RunFiles

HOSTILE = (
    "| a <img src=x onerror=alert(1)> [link](javascript:1) ![i](u) **bold** _it_ `code` ~~x~~ $m$ &amp; \\| "
    "\n# head\n---"
)


@pytest.fixture
def files() -> RunFiles:
    """A run of a Hub teacher on Hub and local text."""
    return RunFiles(
        directory=Path("runs/tiny-2"),
        recipe={
            "name": "tiny-2",
            "teacher": "owner/teacher-v1",
            "layers": [0, 5],
            "sts": {"sts-dev": "owner/stsb::validation", "sts-test": "owner/stsb::test", "words": "words.tsv"},
            "learning_rate": 0.0004,
            "weight_decay": 0.0,
            "seed": 42,
            "output": "runs",
            "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
        },
        evaluation=copy.deepcopy(EVALUATION),
        pairs={},
        bench=BENCH,
        data={
            "size": 1195425,
            "evaluation_size": 10000,
            "tokens": {"min": 3, "mean": 12.54, "max": 512},
            "samples": ["A sample.", HOSTILE, "word " * 200],
            "sources": {"owner/all-nli:pair-score:train:sentence1,sentence2": 195425, "data/text.txt.gz": 1000000},
        },
        log=[],
        config={"model_type": "bert", "num_hidden_layers": 2, "hidden_size": 8},
        pooling={"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
        transformer={"max_seq_length": 512},
        prompts={"query": "Represent this: ", "passage": ""},
    )


def front_matter(files: RunFiles) -> ModelCardData:
    data = ModelCard(model_card(files)).data
    assert isinstance(data, ModelCardData)
    return data


# -- front matter ------------------------------------------------------------------------------------------------------


def test_front_matter_as_the_hub_reads_it(files: RunFiles) -> None:
    data = front_matter(files)
    assert data.base_model == "owner/teacher-v1"
    assert data.pipeline_tag == "sentence-similarity"
    assert data.library_name == "sentence-transformers"
    assert {"sentence-transformers", "sentence-similarity", "feature-extraction", "distillation"} <= set(
        data.tags or []
    )
    assert data.datasets == ["owner/all-nli"]
    assert data.model_name == "tiny-2"


def test_model_index_keeps_each_set_and_metric_apart(files: RunFiles) -> None:
    found = {
        (result.dataset_name, result.dataset_type, result.dataset_split, result.metric_type): result.metric_value
        for result in front_matter(files).eval_results or []
    }
    measures = {"cosine_ndcg@10": 0.36, "cosine_mrr@10": 0.6, "cosine_recall@1": 0.5, "cosine_found@10": 0.55}
    assert found == {("captions", "captions", None, metric): value for metric, value in measures.items()} | {
        ("sts-dev", "owner/stsb", "validation", "pearson_cosine"): 0.83,
        ("sts-dev", "owner/stsb", "validation", "spearman_cosine"): 0.84,
        ("sts-test", "owner/stsb", "test", "pearson_cosine"): 0.79,
        ("sts-test", "owner/stsb", "test", "spearman_cosine"): 0.80,
        ("words", "words", None, "pearson_cosine"): 0.49,
        ("words", "words", None, "spearman_cosine"): 0.5,
    }


@pytest.mark.parametrize(
    ("teacher", "base_model"),
    [
        ("owner/teacher-v1", "owner/teacher-v1"),
        ("assets/all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"),
        ("/somewhere/all-MiniLM-L6-v2/", "sentence-transformers/all-MiniLM-L6-v2"),
        ("/somewhere/teacher", None),
        ("../teachers/mine", None),
        ("a/b/c", None),
    ],
)
def test_base_model(teacher: str, base_model: str | None) -> None:
    assert base_model_of(teacher) == base_model


def test_a_directory_is_no_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub_name("teachers/mine") == "teachers/mine"
    (tmp_path / "teachers" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub_name("teachers/mine") is None


@pytest.mark.parametrize(
    ("card", "license"),
    [
        ("---\nlicense: apache-2.0\nlanguage: [en, de]\n---\n# Teacher\n", "apache-2.0"),
        ("---\nlicense: cc-by-nc-4.0\n---\n# Teacher\n", None),
        ("---\nlicense: [apache-2.0\n---\n# Teacher\n", None),
        ("# Teacher without front matter\n", None),
        (None, None),
    ],
)
def test_license_is_only_what_the_teachers_card_says(
    files: RunFiles, tmp_path: Path, card: str | None, license: str | None
) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    files.recipe["teacher"] = str(tmp_path)
    data = front_matter(files)
    assert data.license == license
    assert data.base_model is None
    assert data.language == (["en", "de"] if license else None)


def test_license_of_the_embedded_default(files: RunFiles) -> None:
    files.recipe["teacher"] = "assets/all-MiniLM-L6-v2"
    data = front_matter(files)
    assert (data.license, data.language) == ("apache-2.0", "en")


# -- body --------------------------------------------------------------------------------------------------------------


def test_body_has_architecture_results_speed_data_and_versions(files: RunFiles) -> None:
    card = model_card(files)
    assert 'Embedder.load("runs/tiny-2/model", precision="fp32")' in card
    for text in [
        "2 of the 6 layers of [owner/teacher-v1](https://huggingface.co/owner/teacher-v1)",
        "| Teacher's layers kept (from 0) | 0, 5 |",
        "| Pooling | cls |",
        "| Maximum length in tokens | 512 |",
        "| Parameters | 1,500,000 |",
        "| sts-test | 12 | 0.8000 | 0.7800 to 0.8150 | 0.8200 | 97.6% | 0.7900 |",
        "| mean | – | 0.7133 | – | 0.6933 | 102.9% | 0.7033 |",
        "-0.05",
        "| fp32 | 1,150 | 400 | 2.88 |",
        "| Training sentences | 1,195,425 |",
        "| Tokens a sentence: mean | 12.5 |",
        "| 1 | A sample. |",
        "| torch | 2.13.0 |",
        "1908.10084",
        "2004.09813",
        "1503.02531",
        "1910.01108",
    ]:
        assert text in card


def test_changed_settings_are_shown_and_all_are_folded(files: RunFiles) -> None:
    changed, folded = model_card(files).split("## Settings")[1].split("## Citations")[0].split("<details>")

    def names(table: str) -> set[str]:
        cells = [line.split(" | ")[0].strip("| ").replace("\\", "") for line in table.splitlines() if " | " in line]
        return set(cells) - {"Setting", "---", "Package", *files.versions}

    assert names(folded) == set(files.recipe) - {"versions"}
    assert names(changed) == {"name", "teacher", "layers", "sts", "learning_rate"}  # seed and others are the defaults
    assert "| weight\\_decay | 0.0 |" in folded and "</details>" in folded


def test_the_layers_are_the_teachers_own_also_through_a_chain_of_students(files: RunFiles) -> None:
    assert "| Teacher's layers kept (from 0) | 0, 5 |" in model_card(files)
    files.recipe |= {"start_from": "runs/minilm-4/model", "layers": [0, 1, 3]}
    assert "| Layers of runs/minilm-4/model kept (from 0) | 0, 1, 3 |" in model_card(files)
    files.data["teacher_layers"] = [0, 2, 5]
    card = model_card(files)
    assert "| Teacher's layers kept (from 0) | 0, 2, 5 |" in card and "Layers of runs" not in card


def test_a_set_from_the_hub_gets_a_file_of_results_that_the_hub_reads(files: RunFiles) -> None:
    texts = eval_result_files(files)
    assert sorted(texts) == ["sts-dev.yaml", "sts-test.yaml"]  # the others are local files
    (entry,) = parse_eval_result_entries(yaml.safe_load(texts["sts-test.yaml"]))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("owner/stsb", "default", 0.8)
    assert entry.notes == "spearman_cosine, split test"


def test_foreign_text_stays_text(files: RunFiles) -> None:
    files.prompts = {"que`ry``<b>": "<script>x</script>"}
    files.evaluation["retrieval"] = {"<i>mine</i>": EVALUATION["retrieval"]["captions"]}
    files.evaluation["student"]["words"] = {}
    card = model_card(files)
    assert """``` model.encode(queries, prompt_name="que`ry``<b>") ```""" in card
    assert "<script>" not in card and "<i>" not in card.split("---", 2)[2]


@pytest.mark.parametrize("model_id", [None, "me/tiny-2", 'a "quoted" \\ path'])
def test_usage_is_valid_python_that_loads_the_model(files: RunFiles, model_id: str | None) -> None:
    blocks = re.findall(r"```python\n(.*?)```", model_card(files, model_id), re.DOTALL)
    assert [block.split(" import ")[0] for block in blocks] == ["from sentence_transformers", "from shortstack"]
    for block in blocks:
        assert (model_id or "runs/tiny-2/model") in compile(block, "usage", "exec").co_consts


def test_usage_names_the_prompt_of_a_model_that_has_one(files: RunFiles) -> None:
    assert 'prompt_name="query"' in model_card(files)
    files.prompts = {"query": ""}
    assert "prompt_name" not in model_card(files)


def test_a_run_without_teacher_speed_and_data_leaves_those_parts_out(files: RunFiles) -> None:
    files.evaluation = {"student": {"sts-dev": correlations(0.84)}}
    files.bench, files.data, files.recipe = {}, {}, {"name": "tiny-2"}
    card = model_card(files)
    ModelCard(card)
    assert "| sts-dev | 12 | 0.8400 | 0.8200 to 0.8550 | 0.8300 |" in card
    assert not re.search(r"## Speed|## Training data|## Framework|Teacher's Spearman|None", card)


def test_a_run_without_sts_sets_has_no_model_index(files: RunFiles) -> None:
    files.evaluation = {"student": {"negative_mse": -0.05}}
    assert front_matter(files).eval_results is None
    assert "## Results" not in model_card(files)


# -- sentences are anybody's text --------------------------------------------------------------------------------------


def test_a_sentence_stays_one_table_cell(files: RunFiles) -> None:
    line = next(line for line in model_card(files).splitlines() if line.startswith("| 2 | "))
    assert len(re.findall(r"(?<!\\)\|", line)) == 3
    assert "<img" not in line and "\\$m\\$" in line
    long = next(line for line in model_card(files).splitlines() if line.startswith("| 3 | "))
    assert len(long) < 320 and long.endswith("… |")


def test_a_sentence_is_shown_as_it_is() -> None:
    markdown_it = pytest.importorskip(
        "markdown_it", reason="markdown-it-py, a Markdown reader to compare with, is missing"
    )
    reader = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"])
    table = f"| | Sentence |\n| --- | --- |\n| 2 | {markdown(HOSTILE)} |\n"
    tokens = [token for block in reader.parse(table) for token in block.children or []]
    assert {token.type for token in tokens} <= {"text", "text_special"}
    assert tokens[-1].content and "".join(token.content for token in tokens).endswith(" ".join(HOSTILE.split()))
