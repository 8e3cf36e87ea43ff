"""Texts with a teacher's vectors, from every kind of file, found again by their text."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from tiny import english_sentences

from shortstack.distillation.data import vectors as module
from shortstack.distillation.data.vectors import TeacherVectors, read_vectors, text_source
from shortstack.model.files import InputError

TEXTS = [f"{number} {text}" for number, text in enumerate(english_sentences(50))]
VECTORS = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)


def write_files(directory: Path) -> list[str]:
    table = pa.table({"text": TEXTS, "embedding": VECTORS.tolist(), "id": list(range(50))})
    parquet.write_table(table, directory / "a.parquet", row_group_size=7)
    rows = [json.dumps({"body": text, "v": row.tolist()}) for text, row in zip(TEXTS, VECTORS, strict=True)]
    (directory / "a.jsonl").write_text("\n".join(rows))
    np.save(directory / "a.npy", VECTORS)
    (directory / "a.txt").write_text("\n".join(TEXTS))
    columns = {"a.parquet": "text,embedding", "a.jsonl": "body,v"}
    return [f"{directory / name}:{second}" for name, second in columns.items()] + [
        f"{directory / 'a.npy'}:{directory / 'a.txt'}"
    ]


@pytest.mark.parametrize("kind", range(3), ids=["parquet", "jsonl", "npy"])
def test_every_kind_of_file_gives_each_text_its_vector(
    tmp_path: Path, kind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROWS", 8)
    found = TeacherVectors.read([write_files(tmp_path)[kind]], tmp_path / "spool")
    assert found.vectors.shape == (50, 6) and not found.vectors.flags.owndata  # on disk
    assert not any((tmp_path / "spool").iterdir())
    assert found.dimensions == 6 and not found.are_normalised()
    np.testing.assert_allclose(found.of([TEXTS[30], TEXTS[2]]), VECTORS[[30, 2]], rtol=1e-6)


def test_sources_are_joined_and_the_fingerprint_knows_every_number(tmp_path: Path) -> None:
    sources = write_files(tmp_path)
    both = TeacherVectors.read(sources[:2], tmp_path / "spool")
    assert len(both.vectors) == 100
    np.testing.assert_allclose(both.of(TEXTS), VECTORS, rtol=1e-6)
    one = TeacherVectors.read(sources[:1], tmp_path / "spool").fingerprint
    changed = VECTORS.copy()
    changed[49, 5] += 1e-3
    np.save(tmp_path / "a.npy", changed)
    assert TeacherVectors.read(sources[2:], tmp_path / "spool").fingerprint != one


def test_unit_vectors_are_known(tmp_path: Path) -> None:
    np.save(tmp_path / "u.npy", VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True))
    (tmp_path / "u.txt").write_text("\n".join(TEXTS))
    assert TeacherVectors.read([f"{tmp_path / 'u.npy'}:{tmp_path / 'u.txt'}"], tmp_path / "spool").are_normalised()


def test_the_texts_alone_are_a_source(tmp_path: Path) -> None:
    assert text_source("a/b.parquet:text,embedding") == "a/b.parquet:text"
    assert text_source("a/b.npy:a/b.txt") == "a/b.txt"


def refused(tmp_path: Path, source: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        TeacherVectors.read([source], tmp_path / "spool")
    assert not any((tmp_path / "spool").iterdir())


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    parquet_source, json_source, npy_source = write_files(tmp_path)
    refused(tmp_path, "nowhere.parquet:text,embedding", "no such file; write FILE:TEXT_COLUMN,VECTOR_COLUMN")
    refused(tmp_path, parquet_source.replace(",embedding", ""), "name the columns of texts and of vectors")
    names = "there are: text, embedding, id"
    refused(tmp_path, parquet_source.replace("embedding", "vector"), f"a.parquet: no column 'vector'; {names}")
    refused(tmp_path, npy_source.replace(".txt", ".jsonl"), "a.jsonl: beside an array texts are lines of plain text")
    refused(tmp_path, parquet_source.replace("embedding", "id"), "column 'id' holds int64, not lists of numbers")
    refused(tmp_path, json_source.replace(",v", ",w"), "a.jsonl:1: no text in 'body', or no vector in 'w'")
    (tmp_path / "a.txt").write_text("\n".join(TEXTS[:40]))
    numbers = f"{tmp_path / 'a.parquet'}:id,embedding"
    refused(tmp_path, numbers, "column 'id' holds int64, not texts")
    refused(tmp_path, npy_source, "has 40 lines, .*a.npy has 50 rows")
    (tmp_path / "a.txt").write_text("\n".join([*TEXTS, "one more"]))
    refused(tmp_path, npy_source, "has more lines than .*a.npy has rows, 50")
    (tmp_path / "a.txt").write_text("\n".join(TEXTS))
    bad = VECTORS.copy()
    bad[3] = 0
    np.save(tmp_path / "a.npy", bad)
    refused(tmp_path, npy_source, re.escape(f"the vector of '{TEXTS[3]}' is zero or not finite"))
    np.save(tmp_path / "a.npy", VECTORS[:, 0])
    refused(tmp_path, npy_source, r"shape \(50,\)")
    (tmp_path / "a.npy").write_bytes(b"")
    refused(tmp_path, npy_source, "a.npy.*: can't be read as texts with vectors")
    for vector, words in (([[1.0, 2.0]], "'v' is a list of lists, not one vector"), ([{}], "can't be read as texts")):
        (tmp_path / "a.jsonl").write_text(json.dumps({"body": "a", "v": vector}))
        refused(tmp_path, json_source, words)
    rows = [{"body": "a", "v": [1.0, 2.0]}, {"body": "b", "v": [1.0]}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    refused(tmp_path, json_source, "a.jsonl:2: a vector of 1 numbers, after one of 2")


def test_batches_are_no_larger_than_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", 8)
    for source in write_files(tmp_path):
        assert max(len(texts) for texts, _ in read_vectors(source)) <= 8
