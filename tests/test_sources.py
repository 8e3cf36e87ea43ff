"""Sentence sources: every format is read, every bad input named with its file and line."""

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from tiny import STS_BENCHMARK, parquet_bytes, put

from shortstack.distillation.data import sources as module
from shortstack.distillation.data.sentences import read_sentences
from shortstack.distillation.data.sources import parse_source, read_source
from shortstack.model.files import InputError

FORMATS: dict[str, str | bytes] = {
    "a.txt": "one\n\n  two \r\nthree",
    "a.en": "one\ntwo\n\nthree\n",
    "a.csv": 'id,sentence1,sentence2\n1,one,"two"\n\n2,three,\n',
    "a.tsv": "anchor\tpositive\none\ttwo\nthree\t\n",
    "a.jsonl": '{"text": "one", "id": 3}\n\n"two"\n["three"]\n',
    "a.json": '["one", "two"]\n{"query": "three", "score": 1.0}\n',
    "a.parquet": parquet_bytes({"premise": ["one", "three"], "label": [1, 2], "hypothesis": ["two", None]}),
}


@pytest.mark.parametrize("compressed", ["", ".gz"])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_its_sentences(tmp_path: Path, name: str, compressed: str) -> None:
    source = put(tmp_path / (name + compressed), FORMATS[name])
    assert list(read_sentences(source)) == ["one", "two", "three"]


@pytest.mark.parametrize("name", ["sts.csv", "sts.tsv", "sts.csv.gz"])
def test_sts_benchmark_gives_both_columns_and_keeps_its_quotation_marks(tmp_path: Path, name: str) -> None:
    source = put(tmp_path / name, STS_BENCHMARK)
    assert list(read_sentences(source)) == [
        "A plane is taking off.",
        "An air plane is taking off.",
        '"Yes", he said.',
        'It costs 3" more.',
    ]


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.csv", "left,right,other\none,two,x\n"),
        ("a.jsonl", '{"left": "one", "right": "two", "other": "x"}\n'),
        ("a.parquet", parquet_bytes({"other": ["x"], "right": ["two"], "left": ["one"]})),
    ],
)
def test_named_columns_are_taken_in_the_order_named(tmp_path: Path, name: str, content: str | bytes) -> None:
    source = put(tmp_path / name, content)
    assert list(read_sentences(f"{source}:right,left")) == ["two", "one"]


def test_csv_keeps_commas_quotes_and_line_breaks_inside_quotes(tmp_path: Path) -> None:
    source = put(tmp_path / "a.csv", '\ufeffsentence\n"a, ""b""\nc"\nd\n')
    assert list(read_sentences(source)) == ['a, "b"\nc', "d"]


def test_a_glob_reads_its_files_in_order_and_a_name_with_a_colon_is_a_file(tmp_path: Path) -> None:
    for name in ["b:2.txt", "a.txt", "b[1].txt"]:
        put(tmp_path / name, name)
    assert list(read_sentences(f"{tmp_path}/*.txt")) == ["a.txt", "b:2.txt", "b[1].txt"]
    assert list(read_sentences(f"{tmp_path}/b:2.txt")) == ["b:2.txt"]
    assert list(read_sentences(f"{tmp_path}/b[1].txt:text")) == ["b[1].txt"]


def test_a_local_dataset_directory(tmp_path: Path) -> None:
    data = tmp_path / "pairs"
    data.mkdir()
    put(data / "train.jsonl", '{"anchor": "one", "other": "x"}\n{"anchor": "two", "other": "y"}\n')
    assert list(read_sentences(str(data))) == ["one", "two"]
    assert list(read_sentences(f"{data}::train:other")) == ["x", "y"]
    with pytest.raises(InputError, match="split nowhere"):
        list(read_sentences(f"{data}::nowhere"))


def test_a_hub_dataset_is_streamed_with_its_config_split_and_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = datasets.Dataset.from_dict({"sentence1": ["one"], "b": ["two"], "score": [1.0]}).to_iterable_dataset()
    calls = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *given, **named: calls.append((*given, named)) or rows)
    assert list(read_sentences("owner/name:pair-score:dev:b,sentence1")) == ["two", "one"]
    assert list(read_sentences("owner/name")) == ["one"]
    assert list(read_sentences("owner/name:::b")) == ["two"]
    plain = ("owner/name", None, {"split": "train", "streaming": True})
    assert calls == [("owner/name", "pair-score", {"split": "dev", "streaming": True}), plain, plain]
    with pytest.raises(InputError, match="owner/name:1: no column 'c'; .*: sentence1, b, score"):
        list(read_sentences("owner/name:::c"))


@pytest.mark.parametrize("name", ["assets/sentences", "runs/mine", "here/mine", "mine/weights.zip", "mine/text.md"])
def test_the_hub_is_not_asked_for_what_looks_like_a_path(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(InputError, match=f"{name}: no such file"):
        parse_source(name, "train")


def test_an_unreachable_hub_says_what_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*arguments: Any, **named: Any) -> None:
        raise ConnectionError("Couldn't reach the Hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(InputError) as caught:
        list(read_sentences("owner/name:pairs"))
    message = str(caught.value)
    assert "\n" not in message
    for part in ["owner/name", "config pairs", "split train", "Couldn't reach the Hub", "pass local files"]:
        assert part in message


BAD_SENTENCES: list[tuple[str, str | bytes | None, str, str]] = [
    ("missing.txt", None, "", "missing.txt: no such file"),
    ("mis sing", None, "", "mis sing: no such file"),
    ("a/b/c", None, ":text", "a/b/c:text: no such file"),
    ("news.TXT", None, "", "news.TXT: no such file"),
    ("name", None, "::::", "no such file"),
    ("missing", None, "/*.txt", "no file matches"),
    ("empty.txt", "", "", "no sentences in it"),
    ("blank.txt", " \n\n", "", "no sentences in it"),
    ("empty.csv", "sentence\n", "", "no sentences in it"),
    ("empty.jsonl", "", "", "no sentences in it"),
    ("latin.txt", "fine\ncaf\xe9\n".encode("latin-1"), "", "latin.txt:2: not UTF-8"),
    ("utf16.txt", "wide".encode("utf-16-le"), "", "utf16.txt:1: a NUL byte"),
    ("nul.csv", "sentence\nfine\na\0b\n", "", "nul.csv:3: a NUL byte"),
    ("text.csv", "sentence\none\n", ":sentence:two", "a file takes column names only"),
    ("open.csv", 'sentence\nfine\n"never closed\nand on\n', "", "open.csv:3: not CSV"),
    ("short.csv", "a,sentence\n1,one\n2\n", "", "short.csv:3: 1 columns, but the header has 2"),
    ("short.tsv", "a\tsentence\n1\tone\ttoo\n", "", "short.tsv:2: 3 columns, but the header has 2"),
    ("sts.csv", STS_BENCHMARK + "main\ttwo\n", "", "sts.csv:3: 2 columns"),
    ("names.csv", "a,b\n1,2\n", "", "names.csv:2: no column with a usual name .*: a, b"),
    ("names.csv", "a,b\n1,2\n", ":c", "names.csv:2: no column 'c'; .*: a, b"),
    ("text.txt", "one\n", ":c", "text.txt:1: no column 'c'; .*: text"),
    ("bad.jsonl", '"fine"\n{"text": \n', "", "bad.jsonl:2: not a JSON value"),
    ("deep.jsonl", "[" * 100_000, "", "deep.jsonl:1: not a JSON value"),
    ("half.jsonl", '"\\ud83d"\n', "", "half.jsonl:1: not a JSON value"),
    ("number.jsonl", "3\n", "", "number.jsonl:1: neither"),
    ("number.jsonl", '{"a": 3}\n', ":a", "number.jsonl:1: column 'a' holds int, not text"),
    ("bad.parquet", b"PAR1 nonsense PAR1", "", "bad.parquet: not a Parquet file"),
    ("names.parquet", parquet_bytes({"a": ["x"]}), "", "names.parquet:1: no column with a usual name"),
    ("names.parquet", parquet_bytes({"a": ["x"], "b": ["y"]}), ":c", "names.parquet: no column 'c'; .*colon: a, b$"),
    ("names.parquet", parquet_bytes({"a": ["x"], "b": ["y"]}), ":b,c", "names.parquet: no column 'c'; .*colon: a, b$"),
]


@pytest.mark.parametrize("name, content, rest, message", BAD_SENTENCES)
def test_bad_sentences_are_named(
    tmp_path: Path, name: str, content: str | bytes | None, rest: str, message: str
) -> None:
    if content is not None:
        put(tmp_path / name, content)
    with pytest.raises(InputError, match=message) as caught:
        list(read_sentences(f"{tmp_path / name}{rest}"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-9], lambda data: b"no gzip", lambda data: data[:30] + b"x" * 30]
)
def test_damaged_gzip_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    data = gzip.compress("\n".join(f"sentence {number * 7919}" for number in range(500)).encode())
    (tmp_path / "a.txt.gz").write_bytes(damage(data))
    with pytest.raises(InputError, match=r"a\.txt\.gz:\d+: damaged gzip"):
        list(read_sentences(str(tmp_path / "a.txt.gz")))


def test_an_endless_line_or_field_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINE_LIMIT", 1000)
    put(tmp_path / "a.txt", "x" * 1001)
    with pytest.raises(InputError, match=r"a\.txt:1: a line of more than 1,000 bytes"):
        list(read_sentences(str(tmp_path / "a.txt")))
    put(tmp_path / "a.csv", 'sentence\nfine\n"' + "open\n" * 1000)
    with pytest.raises(InputError, match=r"a\.csv:3: not CSV .*limit"):
        list(read_sentences(str(tmp_path / "a.csv")))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "one\rtwo\rthree", "lines end in carriage returns alone"),
        ("a.csv", "text,text\na,b\n", "a.csv:1: the column 'text' is there twice"),
        ("a.json", '[{"text": "a"}, {"text": "b"}]\n', "a.json:1: an array of objects"),
    ],
)
def test_text_that_would_be_lost_in_silence_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_bytes(content.encode())
    with pytest.raises(InputError, match=message):
        list(read_source(parse_source(str(tmp_path / name), "train")))


def test_a_pipe_is_named_and_a_loop_of_links_read_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(InputError, match="pipe.txt: a pipe or device"):
        parse_source(str(tmp_path / "pipe.txt"), "train")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("once")
    (tmp_path / "docs" / "loop").symlink_to(tmp_path / "docs", target_is_directory=True)
    assert parse_source(f"{tmp_path}/docs/**/*.txt", "train").files == [tmp_path / "docs" / "a.txt"]
