"""Similarity and relevance judgements: every form is read, every bad one named; any bytes are read or refused."""

import contextlib
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import STS_BENCHMARK, parquet_bytes, put

from shortstack.distillation.data.sentences import read_sentences
from shortstack.distillation.data.sources import parse_source
from shortstack.distillation.evaluation.sets import read_retrieval, read_sts
from shortstack.model.files import InputError

# Similarity judgements

STS_FORMATS: dict[str, str | bytes] = {
    "a.csv": 'sentence1,sentence2,score\n"a, b",c,1.5\nd,e,2\n',
    "a.tsv": "text1\ttext2\tlabel\na, b\tc\t1.5\nd\te\t2\n",
    "a.jsonl": '{"sentence1": "a, b", "sentence2": "c", "similarity_score": 1.5}\n["d", "e", 2]\n',
    "a.parquet": parquet_bytes({"sentence1": ["a, b", "d"], "sentence2": ["c", "e"], "score": [1.5, 2.0]}),
    "b.csv": "x\tx\tx\tx\t1.5\ta, b\tc\nx\tx\tx\tx\t2\td\te\tx\n",
}


@pytest.mark.parametrize("compressed", ["", ".gz"])
@pytest.mark.parametrize("name", STS_FORMATS)
def test_every_sts_format(tmp_path: Path, name: str, compressed: str) -> None:
    pairs = read_sts("mine", put(tmp_path / (name + compressed), STS_FORMATS[name]))
    assert (pairs.name, pairs.sentences1, pairs.sentences2) == ("mine", ["a, b", "d"], ["c", "e"])
    assert pairs.scores.dtype == np.float64 and pairs.scores.tolist() == [1.5, 2.0]


def test_sts_columns_by_name(tmp_path: Path) -> None:
    source = put(tmp_path / "a.csv", "left,right,human\na,b,1\nc,d,2\n")
    assert read_sts("mine", f"{source}:left,right,human").sentences2 == ["b", "d"]
    with pytest.raises(InputError, match="name three columns"):
        read_sts("mine", f"{source}:left,right")


def test_sts_from_the_hub_takes_the_test_split(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "score": [0.1, 0.2]}
    found = {("owner/stsb", None, "test", True): datasets.Dataset.from_dict(rows).to_iterable_dataset()}
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name, config, split, streaming: found[name, config, split, streaming]
    )
    assert read_sts("stsb", "owner/stsb").scores.tolist() == [0.1, 0.2]


def test_the_real_captions_and_sts_benchmark_are_read_whole(shared_data: Path) -> None:
    assert len(list(read_sentences(f"{shared_data}/captions/val.*.en.gz"))) == 5 * 1014
    for split, count in [("dev", 1500), ("test", 1379)]:
        source = f"{shared_data}/stsb/sts-{split}.csv"
        pairs = read_sts(split, source)
        assert len(pairs.scores) == len(pairs.sentences1) == len(pairs.sentences2) == count
        assert pairs.scores.min() >= 0 and pairs.scores.max() == 5
        assert len(list(read_sentences(source))) == 2 * count


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv", "sentence1,sentence2\na,b\n", r"a\.csv:2: no column score or .*: sentence1, sentence2"),
        ("a.csv", "sentence1,score\na,1\n", r"a\.csv:2: no column sentence2 or text2"),
        ("a.csv", "sentence1,sentence2,score\na,b,1\nc,d,high\n", r"a\.csv:3: score 'high' is not a finite number"),
        ("a.csv", "sentence1,sentence2,score\na,b,nan\n", r"a\.csv:2: score 'nan'"),
        ("a.csv", "sentence1,sentence2,score\na,b,1_0\n", r"a\.csv:2: score '1_0'"),
        ("a.jsonl", '["a", "b", 1]\n["a", "b", Infinity]\n', r"a\.jsonl:2: score inf"),
        ("a.jsonl", '["a", "b", true]\n', r"a\.jsonl:1: score True"),
        ("a.jsonl", '["a", 3, 1]\n', r"a\.jsonl:1: a sentence is 'a' or 3, not text"),
        ("a.jsonl", '["a", "b", 1' + "0" * 400 + "]\n", r"a\.jsonl:1: score 10"),
        ("a.tsv", STS_BENCHMARK.replace("2.5", "?"), r"a\.tsv:2: score '\?'"),
        ("a.csv", "sentence1,sentence2,score\na,b,1\n", "1 pairs; a correlation needs two"),
        ("a.csv", "", "0 pairs"),
        ("a.csv", "sentence1,sentence2,score\na,b,1\nc,d,1.0\n", "every score is 1"),
    ],
)
def test_bad_sts_files_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_sts("mine", put(tmp_path / name, content))


def test_a_missing_column_of_parquet_is_named_with_those_there_are(tmp_path: Path) -> None:
    source = put(tmp_path / "a.parquet", parquet_bytes({"left": ["a"], "right": ["b"], "how": [1]}))
    with pytest.raises(InputError, match=r"a\.parquet: no column 'score'; .*: left, right, how$"):
        read_sts("mine", f"{source}:left,right,score")


# Relevance judgements


@pytest.fixture
def retrieval(tmp_path: Path) -> Path:
    """A directory with queries, documents and relevance as text files."""
    directory = tmp_path / "retrieval"
    directory.mkdir()
    put(directory / "queries.txt", "first\nsecond\nthird\n")
    put(directory / "documents.txt", "a\nb\nb\n")
    put(directory / "relevance.tsv", "0\t2\n0\t1\t3\n1\t0\t0\n2\t0\n")
    return directory


def test_a_retrieval_directory_and_the_same_three_files(retrieval: Path) -> None:
    names = [str(retrieval / name) for name in ["queries.txt", "documents.txt", "relevance.tsv"]]
    for source in [str(retrieval), ",".join(names)]:
        judged = read_retrieval("mine", source)
        assert (judged.name, judged.queries) == ("mine", ["first", "third"])  # the second has no relevant document
        assert judged.documents == ["a", "b", "b"]  # the same text twice stays
        assert [set(each) for each in judged.grades] == [{1, 2}, {0}]


def test_a_beir_directory(tmp_path: Path) -> None:
    put(tmp_path / "queries.jsonl", '{"_id": "q1", "text": "first"}\n{"_id": "q2", "text": "second"}\n')
    put(
        tmp_path / "corpus.jsonl.gz",
        '{"_id": "d1", "title": "A", "text": "b"}\n{"_id": "d2", "title": "", "text": ""}\n',
    )
    (tmp_path / "qrels").mkdir()
    put(tmp_path / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore\nq2\td1\t1\nq1\td2\t2\n")
    judged = read_retrieval("beir", str(tmp_path))
    assert (judged.queries, judged.documents) == (["first", "second"], ["A b", ""])
    assert judged.grades == [{1: 2}, {0: 1}]


def test_parallel_files(tmp_path: Path) -> None:
    names = [put(tmp_path / f"{name}.gz", f"{name}1\n{name}2\n") for name in "abc"]
    judged = read_retrieval("captions", "parallel:" + ",".join(names))
    assert (judged.queries, judged.documents) == (["a1", "a2"], ["b1", "b2", "c1", "c2"])
    assert judged.grades == [{0: 1, 2: 1}, {1: 1, 3: 1}]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("queries.txt", None, "no queries with the ending"),
        ("documents.txt", None, "no documents or corpus"),
        ("relevance.tsv", None, "no relevance or qrels"),
        ("queries.txt", "first\n\nthird\n", r"queries\.txt: query 2 is empty"),
        ("queries.txt", b"first\n\xff\n", r"queries\.txt:2: not UTF-8"),
        ("queries.jsonl", '{"_id": "q"}\n', r"queries\.jsonl:1: no text"),
        ("queries.jsonl", '{"_id": "q", "text": "a"}\n{"_id": "q", "text": "b"}\n', r"queries\.jsonl:2: the id q is"),
        ("relevance.tsv", "0\t1\n7\t1\n", r"relevance\.tsv:2: no query 7"),
        ("relevance.tsv", "0\t1\n1\t9\n", r"relevance\.tsv:2: no document 9"),
        ("relevance.tsv", "0 1\n", r"relevance\.tsv:1: not a query"),
        ("relevance.tsv", "0\t1\tvery\n", r"relevance\.tsv:1: not a query"),
        ("relevance.tsv", "query-id\tcorpus-id\n0\t1\t0\n", "no query has a relevant document"),
    ],
)
def test_bad_retrieval_directories_are_named(
    retrieval: Path, name: str, content: str | bytes | None, message: str
) -> None:
    if content is None:
        (retrieval / name).unlink()
    else:
        put(retrieval / name, content)
    with pytest.raises(InputError, match=message):
        read_retrieval("mine", str(retrieval))


def test_bad_parallel_files_are_named(tmp_path: Path) -> None:
    names = [put(tmp_path / name, text) for name, text in [("a", "1\n2\n"), ("b", "1\n"), ("c", "1\n\n"), ("d", "")]]
    for files, message in [
        (names[:1], "two or more files"),
        ([names[0], names[1]], "b: 1 lines, but .*a has 2"),
        ([names[0], names[2]], "c:2: an empty line"),
        ([names[3], names[3]], "no lines"),
        ([names[0], f"{tmp_path}/missing"], "missing: no such file"),
    ]:
        with pytest.raises(InputError, match=message):
            read_retrieval("mine", "parallel:" + ",".join(files))
    with pytest.raises(InputError, match="neither a directory nor"):
        read_retrieval("mine", "nothing")


# Whatever the bytes: a result or an InputError, and nothing else

SUFFIXES = [".txt", ".csv", ".tsv", ".jsonl", ".parquet"]
SCRAPS = [
    "sentence1,sentence2,score\n", "sentence1\tsentence2\tscore\n", "a,b,1\n", "a\tb\t2\n", "x\tx\tx\tx\t1\ta\tb\n",
    '{"sentence1": "a", "sentence2": "b", "score": 1}\n', '["a", "b", 2]', '{"_id": "0", "text": "a"}\n', "\\ud800",
    "query-id\tcorpus-id\tscore\n", "0\t0\t1\n", "nan", "1e999", '"', "\t", "\n", "\r", "\0", "{", "[", "\ufeff",
]  # fmt: skip
contents = st.one_of(
    st.binary(max_size=200),
    st.lists(st.one_of(st.sampled_from(SCRAPS), st.text(max_size=5)), max_size=12).map(
        lambda parts: "".join(parts).encode()
    ),
    st.builds(
        lambda data, place, byte: data[: place % len(data)] + bytes([byte]) + data[place % len(data) + 1 :],
        st.sampled_from([value for value in STS_FORMATS.values() if isinstance(value, bytes)]),
        st.integers(0, 10_000),
        st.integers(0, 255),
    ),
)
fuzz = settings(suppress_health_check=[*settings().suppress_health_check, HealthCheck.function_scoped_fixture])


def check_only_input_errors(read: Callable[[], object]) -> None:
    """Run a reader; anything it raises but an InputError fails the test."""
    with contextlib.suppress(InputError):
        read()


@fuzz
@given(content=contents, suffix=st.sampled_from(SUFFIXES), mode=st.sampled_from(["plain", "gzip", "broken gzip"]))
def test_any_bytes_as_sentences_and_similarity(tmp_path: Path, content: bytes, suffix: str, mode: str) -> None:
    path = tmp_path / f"a{suffix}{'' if mode == 'plain' else '.gz'}"
    path.write_bytes(gzip.compress(content) if mode == "gzip" else content)
    for columns in ["", ":sentence1", ":sentence1,sentence2,score"]:
        check_only_input_errors(lambda columns=columns: [text.encode() for text in read_sentences(f"{path}{columns}")])
    check_only_input_errors(lambda: read_sts("mine", str(path)))


@fuzz
@given(
    queries=contents, documents=contents, relevance=contents,
    suffix=st.sampled_from([".txt", ".jsonl"]), parallel=st.booleans(),
)  # fmt: skip
def test_any_bytes_as_retrieval(
    tmp_path: Path, queries: bytes, documents: bytes, relevance: bytes, suffix: str, parallel: bool
) -> None:
    paths = [tmp_path / f"queries{suffix}", tmp_path / f"documents{suffix}", tmp_path / "relevance.tsv"]
    for path, content in zip(paths, [queries, documents, relevance], strict=True):
        path.write_bytes(content)
    source = ",".join(map(str, paths))
    check_only_input_errors(lambda: read_retrieval("mine", f"parallel:{source}" if parallel else source))


@fuzz
@given(st.text(max_size=30))
def test_any_text_as_a_source(source: str) -> None:
    check_only_input_errors(lambda: parse_source(source, "train"))


@fuzz
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from(["text", "sentence1", "sentence2", "score", "_id"]), inner, max_size=4)
        ),
    )
)
def test_any_json_value(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(value) + "\n" + json.dumps(value) + "\n")
    check_only_input_errors(lambda: list(read_sentences(str(path))))
    check_only_input_errors(lambda: read_sts("mine", str(path)))
    check_only_input_errors(lambda: read_retrieval("mine", f"parallel:{path},{path}"))
