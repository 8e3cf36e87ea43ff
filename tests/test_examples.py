"""The examples run, and show what they promise."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from processes import ENVIRONMENT, LIMIT, ROOT
from tiny import english_sentences, make_bert_dir, write_documents

from shortstack.distillation.recipe import Recipe, recipe_text
from shortstack.model import Embedder

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SENTENCES = english_sentences(50)
Call, Main = Callable[..., None], Callable[[], None]


def example(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module(name)


# -- search.py -------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A run directory with a student, and a text file beside it in which a sentence stands twice."""
    directory = tmp_path / "runs" / "small"
    student = Embedder.load(tiny_model_dir, "cpu", "fp32").keep_layers([0, 5])
    student.save(directory / "model")
    recipe = Recipe(name="small", teacher=str(tiny_model_dir), sentences=["a.txt"], pooling="cls")
    (directory / "recipe.toml").write_text(recipe_text(recipe))
    (tmp_path / "text.txt").write_text("\n".join([*SENTENCES, SENTENCES[0]]))
    return directory


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Of search.py, in a wide terminal."""
    monkeypatch.setenv("COLUMNS", "600")
    return example("search", monkeypatch).main


def nearest(embedder: Embedder, index: Embedder, query: str, top: int) -> list[str]:
    similarities = embedder.similarity(embedder.encode(query), index.encode(SENTENCES))[0].numpy()
    places = np.argsort(-similarities, kind="stable")[:top]
    return [f"{similarities[place]:.3f} {SENTENCES[place]}" for place in places]


def test_search_shows_student_and_teacher_side_by_side(
    run: Path, tiny_model_dir: Path, tmp_path: Path, main: Main, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    call(main, run / "model", tmp_path / "text.txt", SENTENCES[7], "--top", "4")
    lines = capsys.readouterr().out.splitlines()
    student, teacher = Embedder.load(run / "model"), Embedder.load(tiny_model_dir, pooling="cls")
    assert [line.strip() for line in (lines[0][:200], lines[0][200:400], lines[0][400:])] == [
        "student", "teacher", "student, teacher's index",
    ]  # fmt: skip
    shown = [[line[start : start + 200].rstrip() for line in lines[1:5]] for start in (0, 200, 400)]
    assert shown == [
        nearest(student, student, SENTENCES[7], 4),
        nearest(teacher, teacher, SENTENCES[7], 4),
        nearest(student, teacher, SENTENCES[7], 4),
    ]
    assert lines[1].startswith(f"1.000 {SENTENCES[7]}") and lines[5] == ""
    for line, who in zip(lines[6:8], ("student", "teacher"), strict=True):
        assert re.fullmatch(who + r": 50 sentences in \d+\.\d\d s, the query in \d+\.\d ms", line)
    both = len({line[6:] for line in shown[1]} & {line[6:] for line in shown[2]})
    assert re.fullmatch(rf"student, teacher's index: no sentence .* finds {both} of the teacher's 4", lines[8])


def test_search_without_a_teacher_and_with_few_sentences(
    run: Path, tmp_path: Path, main: Main, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "few.txt").write_text("a cat\na dog\n")
    call(main, run / "model", tmp_path / "few.txt", "a cat", "--teacher", "none")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "student" and lines[1] == "1.000 a cat" and lines[2].endswith(" a dog") and len(lines) == 5


def test_search_embeds_query_and_sentences_under_their_own_prompts(
    tiny_cls_dir: Path, tmp_path: Path, main: Main, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    embedder = Embedder.load(tiny_cls_dir)
    embedder.settings.prompts = {"query": "look for: ", "passage": "this says: ", "other": "any: "}
    embedder.settings.default_prompt_name = "other"
    embedder.save(tmp_path / "model")
    (tmp_path / "text.txt").write_text("\n".join(SENTENCES))
    call(main, tmp_path / "model", tmp_path / "text.txt", "a dog", "--top", "1")
    query, index = embedder.encode("a dog", "query"), embedder.encode(SENTENCES, "passage")
    best = float(embedder.similarity(query, index).max())
    assert capsys.readouterr().out.splitlines()[1].startswith(f"{best:.3f} ")


def test_columns_are_wrapped_within_their_width(monkeypatch: pytest.MonkeyPatch) -> None:
    module = example("search", monkeypatch)
    text = module.side_by_side([["student", "0.5 " + "long " * 40], ["teacher", "0.25 b"]], 30)
    lines = text.splitlines()
    assert lines[0] == "student".ljust(30) + "teacher" and lines[1][30:] == "0.25 b"
    assert len(lines) == 4 and all(len(line) <= 60 for line in lines) and lines[3].endswith("[...]")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{model}", "missing.txt", "q"], "missing.txt: no such file"),
        (["./missing", "{text}", "q"], "./missing: no such model directory"),
        (["{model}", "{text}"], "the following arguments are required: QUERY"),
        (["{model}", "{text}", "q", "--top", "0"], "--top: 0 must be at least 1"),
    ],
)
def test_search_names_what_is_wrong(
    run: Path, tmp_path: Path, main: Main, refusal: Callable[..., str], arguments: list[str], words: str
) -> None:
    places = {"model": run / "model", "text": tmp_path / "text.txt"}
    assert words in refusal(main, *(argument.format(**places) for argument in arguments))


# -- langchain_embeddings.py -----------------------------------------------------------------------------------------


@pytest.fixture
def langchain(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("langchain_core", reason="langchain-core is not installed: pip install langchain-core")
    return example("langchain_embeddings", monkeypatch)


def test_langchain_embeddings_are_the_embedders(langchain: ModuleType, tmp_path: Path) -> None:
    prompts = {"query": "who sees: ", "passage": "the answer is "}
    path = make_bert_dir(tmp_path / "prompted", layers=1, prompts=prompts)
    embeddings, embedder = langchain.ShortstackEmbeddings(str(path), "fp32"), Embedder.load(path, precision="fp32")
    documents = embeddings.embed_documents(SENTENCES[:3])
    np.testing.assert_allclose(documents, embedder.encode(SENTENCES[:3], prompt_name="passage"), atol=1e-6)
    query = embeddings.embed_query("a dog")
    np.testing.assert_allclose(query, embedder.encode("a dog", prompt_name="query"), atol=1e-6)
    assert isinstance(query, list) and isinstance(query[0], float) and isinstance(documents[2], list)


def test_a_vector_store_finds_with_them(
    langchain: ModuleType, tiny_model_dir: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    store = langchain.InMemoryVectorStore(langchain.ShortstackEmbeddings(str(tiny_model_dir), "fp32"))
    store.add_texts(SENTENCES)
    assert store.similarity_search(SENTENCES[9], k=1)[0].page_content == SENTENCES[9]
    call(langchain.main, tiny_model_dir, "It will rain in the north.")
    assert capsys.readouterr().out.splitlines()[0] == "1.000 It will rain in the north."


# -- shortstack.ipynb --------------------------------------------------------------------------------------------------


def tiny_assets(assets: Path, model: Path) -> None:
    """What the default recipe reads, in small."""
    shutil.copytree(model, assets / "all-MiniLM-L6-v2")
    for folder in ("sentences", "sts", "retrieval/wikipedia"):
        (assets / folder).mkdir(parents=True)
    for seed, name in enumerate(("clauses", "definitions", "news", "passages")):
        (assets / "sentences" / f"{name}.txt").write_text("\n".join(english_sentences(600, seed=seed)))
    rows = [
        f"{one}\t{two}\t{place % 6}" for place, (one, two) in enumerate(zip(SENTENCES, SENTENCES[1:], strict=False))
    ]
    for name in ("lee", "wordsim353", "simlex999"):
        (assets / "sts" / f"{name}.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *rows]))
    search = assets / "retrieval" / "wikipedia"
    for name in ("queries.txt", "documents.txt"):
        (search / name).write_text("\n".join(SENTENCES))
    (search / "relevance.tsv").write_text("\n".join(f"{row}\t{row}" for row in range(len(SENTENCES))))


def run_notebook(settings: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Run every cell of code in order, with other `settings`: what its commands print, and its variables."""
    names: dict[str, Any] = {}
    printed: list[str] = []
    for cell in json.loads((EXAMPLES / "shortstack.ipynb").read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        lines = "".join(cell["source"]).splitlines()
        exec("\n".join(line for line in lines if not line.startswith("!")), names)
        assert set(settings) <= names.keys()
        names.update(settings)
        for line in (line[1:] for line in lines if line.startswith("!")):
            command = line.format_map(names)
            ended = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=LIMIT)
            assert ended.returncode == 0, f"{command}: {ended.stderr}"
            printed.append(ended.stdout)
    return printed, names


@pytest.mark.parametrize("kind", ["tiny", pytest.param("real", marks=pytest.mark.long)])
def test_every_cell_of_the_notebook_runs(
    kind: str, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """With a tiny teacher, where nothing is fetched; the long test takes the default's own teacher and text."""
    shell = ["#!/bin/sh", f'exec "{sys.executable}" -m shortstack "$@"']
    if kind == "tiny":
        tiny_assets(tmp_path / "assets", tiny_model_dir)
        shell.insert(1, '[ "$1" = prepare ] && exit 0')
    else:
        request.getfixturevalue("minilm_dir")
        (tmp_path / "assets").symlink_to(ROOT / "assets")
    (tmp_path / "shortstack").write_text("\n".join(shell))
    (tmp_path / "shortstack").chmod(0o755)
    for name, value in (ENVIRONMENT | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    shown: list[bytes] = []
    display = ModuleType("IPython.display")
    display.Image = lambda path: shown.append(Path(path).read_bytes())  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)

    write_documents(tmp_path / "docs")
    printed, names = run_notebook({"MAX_SENTENCES": 600, "DOCUMENTS": "docs"})
    assert len(printed) == 5 and printed[-1].strip().splitlines()[-1].startswith("search on your documents: ")
    assert shown[0].startswith(b"\x89PNG")
    assert names["embeddings"].shape == (3, names["embedder"].dimensions)
    assert (tmp_path / "runs" / "own-corpus" / "model" / "model.safetensors").is_file()
