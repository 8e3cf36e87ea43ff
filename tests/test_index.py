"""An existing index: whose vectors it holds, and what the student's queries find in it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from safetensors.torch import save_file
from tiny import english_sentences, load, make_bert_dir

from shortstack import evaluate
from shortstack.distillation import RunError
from shortstack.distillation.evaluation import index as index_module
from shortstack.distillation.evaluation.index import Index, check_index, first_sentence, search_index
from shortstack.model.files import InputError, read_json

TEXTS = english_sentences(400)
PROMPTS = {"query": "the man asks about winter and the long night: ", "document": "a book in the kitchen says that "}
Call = Callable[..., None]


@pytest.fixture(autouse=True)
def few_timed_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "TIMED", 5)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bert_dir(tmp_path_factory.mktemp("index") / "teacher", layers=4, prompts=PROMPTS)


@pytest.fixture(scope="module")
def student(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher, but for some noise."""
    path = tmp_path_factory.mktemp("index") / "student"
    embedder = load(teacher).keep_layers([0, 1, 2, 3])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in embedder.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    embedder.save(path)
    return path


@pytest.fixture(scope="module")
def vectors(teacher: Path) -> np.ndarray:
    found = load(teacher).encode_document(TEXTS)
    assert isinstance(found, np.ndarray)
    return found


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n")
    return path


def read(path: Path, vectors: np.ndarray, texts: Path) -> Index:
    np.save(path / "vectors.npy", vectors)
    return Index.read(str(path / "vectors.npy"), str(texts), [], path)


def test_the_teachers_vectors_are_known(teacher: Path, vectors: np.ndarray, texts: Path, tmp_path: Path) -> None:
    embedder = load(teacher)
    check = check_index(read(tmp_path, vectors, texts), embedder)
    assert check["same"] and check["prompt"] == PROMPTS["document"] and check["lowest_cosine"] > 0.9999
    assert "under the prompt 'document'" in check["verdict"] and "of length 1" in check["verdict"]
    long = check_index(read(tmp_path, vectors.astype(np.float16) * 3, texts), embedder)
    assert long["same"] and "of lengths from 3 to 3: search by cosine" in long["verdict"]
    plain = check_index(read(tmp_path, np.asarray(embedder.encode(TEXTS, prompt="")), texts), embedder)
    assert plain["same"] and "under no prompt" in plain["verdict"]
    assert "its own for documents would be the prompt 'document'" in plain["verdict"]


def test_a_few_texts_that_changed_are_counted(teacher: Path, vectors: np.ndarray, texts: Path, tmp_path: Path) -> None:
    changed = vectors.copy()
    changed[0] = -changed[0]
    check = check_index(read(tmp_path, changed, texts), load(teacher))
    assert check["same"] and "; 1 of 64 are not: were those texts changed since?" in check["verdict"]


def test_a_wrong_index_is_named(teacher: Path, vectors: np.ndarray, texts: Path, tmp_path: Path) -> None:
    embedder = load(teacher)
    other = load(make_bert_dir(tmp_path / "other", layers=4, seed=7)).encode(TEXTS)
    check = check_index(read(tmp_path, np.asarray(other), texts), embedder)
    assert not check["near"] and check["verdict"].startswith("not the teacher's: another model made them; mean centred")

    order = np.random.default_rng(0).permutation(len(TEXTS))
    check = check_index(read(tmp_path, vectors[order], texts), embedder)
    row = int(np.flatnonzero(order == 0)[0])
    assert not check["near"] and f"the vector of text 0 is in row {row} (from 0)" in check["verdict"]

    unknown = np.asarray(embedder.encode(TEXTS, prompt="night and day, the old river crosses a big cold city. "))
    check = check_index(read(tmp_path, unknown, texts), embedder)
    assert check["near"] and not check["same"] and "another prompt" in check["verdict"]

    check = check_index(read(tmp_path, vectors[:, :20], texts), embedder)
    assert not check["near"] and "vectors of 20 dimensions, the teacher has 32" in check["verdict"]


def test_blocks_give_the_nearest_of_the_whole(
    vectors: np.ndarray, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = read(tmp_path, vectors, texts)
    queries = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    expected = torch.topk(torch.nn.functional.normalize(queries, dim=1) @ torch.from_numpy(vectors).T, 11)
    monkeypatch.setattr(index_module, "NUMBERS", 32 * 37)  # blocks of 37 rows
    rows, cosines = index.nearest(queries, 11)
    np.testing.assert_array_equal(rows, expected.indices.numpy())
    np.testing.assert_allclose(cosines, expected.values.numpy(), atol=1e-6)


def test_the_own_document_is_left_out() -> None:
    rankings = np.array([[3, *range(10, 20)], [*range(10, 20), 4], range(20, 31)])
    found = index_module.without(rankings, np.array([3, 4, 5]))
    np.testing.assert_array_equal(found, [range(10, 20), range(10, 20), range(20, 30)])
    np.testing.assert_array_equal(index_module.without(rankings, None), rankings[:, :10])


def test_the_teacher_itself_finds_everything_and_a_student_less(
    teacher: Path, student: Path, vectors: np.ndarray, texts: Path, tmp_path: Path
) -> None:
    index = read(tmp_path, vectors, texts)
    embedder = load(teacher)
    itself = search_index(index, embedder, embedder)
    assert itself["found@10"] == 1 and itself["own_document_left_out"] and itself["queries"] == 300
    asked = search_index(index, load(student), embedder, TEXTS[:30])
    assert 0.1 < asked["found@10"] < 1 and asked["kind"] == "your queries" and not asked["own_document_left_out"]
    without_prompts = load(student)
    without_prompts.settings.prompts = {"query": PROMPTS["document"]}
    alone = search_index(index, without_prompts, None)
    assert 0 < alone["found@10"] < 1 and set(alone["milliseconds"]) == {"student"}


def test_first_sentences() -> None:
    assert first_sentence("One fish. Two fish.") == "One fish."
    assert first_sentence("a short text without an end") == "a short text without an end"
    assert first_sentence(" ".join(map(str, range(40)))) == " ".join(map(str, range(12)))


def test_all_kinds_of_files(
    teacher: Path, student: Path, vectors: np.ndarray, texts: Path, tmp_path: Path, call: Call,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    np.save(tmp_path / "v.npy", vectors)
    save_file({"vectors": torch.from_numpy(vectors).bfloat16()}, tmp_path / "v.safetensors")
    parquet.write_table(pa.table({"text": TEXTS, "embedding": vectors.tolist()}), tmp_path / "v.parquet")
    flags = ["--teacher", teacher, "--output", tmp_path, "--precision", "fp32"]
    found = []
    for source in ("v.npy", "v.safetensors", "v.parquet", "v.parquet:text,embedding"):
        of_texts = [] if ":" in source else ["--texts", texts]
        call(evaluate.main, student, "--index", tmp_path / source, *of_texts, *flags)
        printed = capsys.readouterr().out
        assert "vectors: the teacher's vectors, under the prompt 'document'" in printed
        assert "first sentences of documents of the index, each one's own document left out" in printed
        assert "verdict: " in printed and " ms before (teacher), " in printed
        found.append(read_json(tmp_path / "index.json")["search"]["found@10"])
    assert max(found) - min(found) < 0.01 and found[0] == found[2] == found[3]


def test_documents_that_a_run_held_out_make_the_queries(vectors: np.ndarray, texts: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", vectors)
    index = Index.read(str(tmp_path / "v.npy"), str(texts), TEXTS[50:90], tmp_path)
    assert index.held_out and list(index.documents) == list(range(50, 90))
    assert not Index.read(str(tmp_path / "v.npy"), str(texts), TEXTS[50:60], tmp_path).held_out  # too few


def test_titles_are_queries(teacher: Path, tmp_path: Path) -> None:
    rows = [{"title": f"{text} again", "text": text} for text in TEXTS[:40]]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    embedder = load(teacher)
    both = [f"{row['title']} {row['text']}" for row in rows]
    index = read(tmp_path, np.asarray(embedder.encode_document(both)), tmp_path / "texts.jsonl")
    assert check_index(index, embedder)["same"]
    assert index.documents[0] == (rows[0]["title"], rows[0]["text"])


def test_parquet_and_json_lines_give_the_same_titles(vectors: np.ndarray, tmp_path: Path) -> None:
    columns = {"title": [f"T{row}" for row in range(8)], "text": TEXTS[:8], "embedding": vectors[:8].tolist()}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    (tmp_path / "v.jsonl").write_text("\n".join(map(json.dumps, rows)))
    parquet.write_table(pa.table(columns), tmp_path / "v.parquet")
    for name in ("v.jsonl", "v.parquet"):
        index = Index.read(f"{tmp_path / name}:text,embedding", None, [], tmp_path)
        assert index.sample[0] == f"T0 {TEXTS[0]}" and index.documents[0] == ("T0", TEXTS[0])
        assert Index.read(f"{tmp_path / name}:title,embedding", None, [], tmp_path).sample[0] == "T0"


def test_texts_that_are_all_blank_are_refused(vectors: np.ndarray, texts: Path, tmp_path: Path) -> None:
    texts.write_text(" \n" * len(TEXTS))
    with pytest.raises(InputError, match=r"texts\.txt: the 64 rows looked at have no text; give the texts that"):
        read(tmp_path, vectors, texts)


def test_what_is_wrong_is_one_line(
    teacher: Path, student: Path, vectors: np.ndarray, texts: Path, tmp_path: Path, call: Call,
    refusal: Callable[..., str],
) -> None:  # fmt: skip
    np.save(tmp_path / "v.npy", vectors)
    flags = ["--teacher", teacher, "--output", tmp_path]
    index = ["--index", tmp_path / "v.npy"]
    assert "give its texts" in refusal(evaluate.main, student, *index, *flags)
    assert "--index FILE, which is missing" in refusal(evaluate.main, student, "--texts", texts, *flags)
    (tmp_path / "short.txt").write_text("\n".join(TEXTS[:9]))
    short = refusal(evaluate.main, student, *index, "--texts", tmp_path / "short.txt", *flags)
    assert "has 9 texts" in short and "has 400 vectors" in short
    (tmp_path / "bad.npy").write_bytes(b"no array")
    bad = refusal(evaluate.main, student, "--index", tmp_path / "bad.npy", "--texts", texts, *flags)
    assert "can't be read as .npy, .safetensors or .parquet" in bad
    with pytest.raises(RunError, match="another model made them"):
        np.save(tmp_path / "v.npy", np.random.default_rng(0).normal(size=vectors.shape).astype(np.float32))
        call(evaluate.main, student, *index, "--texts", texts, *flags)
    with pytest.raises(InputError, match="vector of row 7"):
        vectors = vectors.copy()
        vectors[7] = np.nan
        read(tmp_path, vectors, texts).nearest(torch.ones(1, 32), 10)
