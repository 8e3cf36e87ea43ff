"""Sentences, similarity and relevance judgements: every format read, every bad input named, the corpus as promised."""

import contextlib
import gzip
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distillation.data import corpus as corpus_module
from distillation.data import sources as sources_module
from distillation.data.corpus import build_corpus
from distillation.data.sentences import read_retrieval, read_sentences, read_sts
from model.files import InputError

STS_BENCHMARK = (
    "main-captions\tMSRvid\t2012test\t0001\t5.000\tA plane is taking off.\tAn air plane is taking off.\n"
    'main-news\tMSRpar\t2012test\t0002\t2.5\t"Yes", he said.\tIt costs 3" more.\textra\tsource\n'
)


def write(path: Path, content: str | bytes) -> str:
    """Write a file, gzip-compressed where its name says so; returns its name."""
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def parquet_bytes(columns: dict[str, list[Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


# Sentences

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
    source = write(tmp_path / (name + compressed), FORMATS[name])
    assert list(read_sentences(source)) == ["one", "two", "three"]


@pytest.mark.parametrize("name", ["sts.csv", "sts.tsv", "sts.csv.gz"])
def test_sts_benchmark_gives_both_columns_and_keeps_its_quotation_marks(tmp_path: Path, name: str) -> None:
    source = write(tmp_path / name, STS_BENCHMARK)
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
    source = write(tmp_path / name, content)
    assert list(read_sentences(f"{source}:right,left")) == ["two", "one"]


def test_csv_keeps_commas_quotes_and_line_breaks_inside_quotes(tmp_path: Path) -> None:
    source = write(tmp_path / "a.csv", '\ufeffsentence\n"a, ""b""\nc"\nd\n')
    assert list(read_sentences(source)) == ['a, "b"\nc', "d"]


def test_a_glob_reads_its_files_in_order_and_a_name_with_a_colon_is_a_file(tmp_path: Path) -> None:
    for name in ["b:2.txt", "a.txt", "b[1].txt"]:
        write(tmp_path / name, name)
    assert list(read_sentences(f"{tmp_path}/*.txt")) == ["a.txt", "b:2.txt", "b[1].txt"]
    assert list(read_sentences(f"{tmp_path}/b:2.txt")) == ["b:2.txt"]
    assert list(read_sentences(f"{tmp_path}/b[1].txt:text")) == ["b[1].txt"]


def test_real_captions_and_sts_files(shared_data: Path) -> None:
    captions = list(read_sentences(f"{shared_data}/captions/val.*.en.gz"))
    assert len(captions) == 5 * 1014
    assert len(list(read_sentences(f"{shared_data}/stsb/sts-dev.csv"))) == 2 * len(
        read_sts("sts-dev", f"{shared_data}/stsb/sts-dev.csv").scores
    )


def test_a_local_dataset_directory(tmp_path: Path) -> None:
    data = tmp_path / "pairs"
    data.mkdir()
    write(data / "train.jsonl", '{"anchor": "one", "other": "x"}\n{"anchor": "two", "other": "y"}\n')
    assert list(read_sentences(str(data))) == ["one", "two"]
    assert list(read_sentences(f"{data}::train:other")) == ["x", "y"]
    with pytest.raises(InputError, match="split nowhere"):
        list(read_sentences(f"{data}::nowhere"))


def test_a_hub_dataset_is_streamed_with_its_config_split_and_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    calls = []

    def load_dataset(*arguments: Any, **named: Any) -> datasets.IterableDataset:
        calls.append((arguments, named))
        return datasets.Dataset.from_dict({"sentence1": ["one"], "b": ["two"], "score": [1.0]}).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(read_sentences("owner/name:pair-score:dev:b,sentence1")) == ["two", "one"]
    assert list(read_sentences("owner/name")) == ["one"]
    assert list(read_sentences("owner/name:::b")) == ["two"]
    assert calls == [
        (("owner/name", "pair-score"), {"split": "dev", "streaming": True}),
        (("owner/name", None), {"split": "train", "streaming": True}),
        (("owner/name", None), {"split": "train", "streaming": True}),
    ]
    with pytest.raises(InputError, match="owner/name:1: no column 'c'; .*: sentence1, b, score"):
        list(read_sentences("owner/name:::c"))


def test_an_unreachable_hub_says_what_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

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
]


@pytest.mark.parametrize("name, content, rest, message", BAD_SENTENCES)
def test_bad_sentences_are_named(
    tmp_path: Path, name: str, content: str | bytes | None, rest: str, message: str
) -> None:
    if content is not None:
        write(tmp_path / name, content)
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
    monkeypatch.setattr(sources_module, "LINE_LIMIT", 1000)
    write(tmp_path / "a.txt", "x" * 1001)
    with pytest.raises(InputError, match=r"a\.txt:1: a line of more than 1,000 bytes"):
        list(read_sentences(str(tmp_path / "a.txt")))
    write(tmp_path / "a.csv", 'sentence\nfine\n"' + "open\n" * 1000)
    with pytest.raises(InputError, match=r"a\.csv:3: not CSV .*limit"):
        list(read_sentences(str(tmp_path / "a.csv")))


# The corpus


@pytest.fixture
def sources(tmp_path: Path) -> list[str]:
    """Two sources: 300 sentences, each twice; 200 more, and 100 of the first again."""
    first = [f"first {number}" for number in range(300)]
    second = [f"second {number}" for number in range(200)] + first[:100]
    return [write(tmp_path / "a.txt", "\n".join(first * 2)), write(tmp_path / "b.txt", "\n".join(second))]


@pytest.mark.parametrize("sampling", ["mixed", "in_order"])
def test_corpus_is_distinct_shuffled_and_disjoint(tmp_path: Path, sources: list[str], sampling: str) -> None:
    corpus = build_corpus(tmp_path / "corpus", sources, None, 60, 42, sampling)
    training, evaluation = corpus.sentences(0, len(corpus)), corpus.evaluation()
    assert (len(corpus), corpus.size, corpus.evaluation_size) == (440, 440, 60)
    assert len(set(training) | set(evaluation)) == 500 == len(training) + len(evaluation)
    assert training != sorted(training) and any(text.startswith("second") for text in training[:50])
    counts = [sum(text.startswith(word) for text in training) for word in ["first", "second"]]
    assert corpus.counts == dict(zip(sources, counts, strict=True))


def test_rows_are_found_by_number(tmp_path: Path, sources: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_module, "BATCH_ROWS", 32)
    monkeypatch.setattr(corpus_module, "GATHER_ROWS", 64)
    corpus = build_corpus(tmp_path / "corpus", sources, 400, 100, 42)
    training = corpus.sentences(0, 400)
    assert len(set(training)) == 400
    indices = np.array([399, 0, 31, 32, 33, 0, 200])
    assert corpus.take(indices) == [training[index] for index in indices]
    assert corpus.take(np.array([], dtype=np.int64)) == []
    assert corpus.sentences(30, 70) == training[30:70]
    for bad in [[400], [-1]]:
        with pytest.raises(IndexError):
            corpus.take(np.array(bad))


def test_the_same_seed_gives_the_same_corpus_and_another_does_not(tmp_path: Path, sources: list[str]) -> None:
    corpora = [build_corpus(tmp_path / name, sources, 300, 50, seed) for name, seed in [("a", 1), ("b", 1), ("c", 2)]]
    texts = [(corpus.sentences(0, 300), corpus.evaluation()) for corpus in corpora]
    assert texts[0] == texts[1] and corpora[0].fingerprint == corpora[1].fingerprint
    assert texts[0] != texts[2] and corpora[0].fingerprint != corpora[2].fingerprint


def test_the_split_is_part_of_the_fingerprint(tmp_path: Path, sources: list[str]) -> None:
    corpus = build_corpus(tmp_path / "corpus", sources, None, 0, 1)
    batches = [corpus.file.get_batch(index) for index in range(corpus.file.num_record_batches)]
    assert corpus.evaluation() == []
    assert corpus_module.fingerprint_of(batches, 500) == corpus.fingerprint
    assert corpus_module.fingerprint_of(batches, 499) != corpus.fingerprint


def test_in_order_uses_up_the_first_source_before_the_second(tmp_path: Path, sources: list[str]) -> None:
    corpus = build_corpus(tmp_path / "corpus", sources, 350, 41, 7, "in_order")
    evaluation = corpus.evaluation()
    assert sum(text.startswith("first") for text in evaluation) == 21
    assert sum(text.startswith("second") for text in evaluation) == 20
    assert corpus.counts == {sources[0]: 300 - 21, sources[1]: 350 - (300 - 21)}
    second = [int(text.split()[1]) for text in corpus.sentences(0, 350) if text.startswith("second")]
    assert second != sorted(second) and max(second) > 100  # cut at random, not at the end


def test_in_order_stops_within_the_first_source(tmp_path: Path, sources: list[str]) -> None:
    corpus = build_corpus(tmp_path / "corpus", sources, 100, 0, 7, "in_order")
    assert corpus.counts == {sources[0]: 100, sources[1]: 0}


@pytest.mark.parametrize(
    "sampling, maximum, held_out, message",
    [
        ("mixed", None, 500, "500 distinct sentences, but 500 to hold out and 1"),
        ("in_order", None, 450, "source 2 of 2 adds 200 distinct sentences, but 225"),
        ("in_order", None, 402, "source 2 of 2 adds 200 distinct"),
        ("sorted", None, 10, "choose mixed or in_order"),
        ("mixed", 0, 10, "too small"),
        ("mixed", None, -1, "too small"),
    ],
)
def test_corpora_that_cannot_be_are_refused(
    tmp_path: Path, sources: list[str], sampling: str, maximum: int | None, held_out: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build_corpus(tmp_path / "corpus", sources, maximum, held_out, 7, sampling)
    assert not [path for path in tmp_path.rglob("*") if ".spool" in path.name or path.suffix == ".arrow"]


def test_no_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no sentences"):
        build_corpus(tmp_path / "corpus", [], None, 10, 7)


def test_the_spool_goes_away_also_on_error_and_after_a_crash(tmp_path: Path, sources: list[str]) -> None:
    directory = tmp_path / "corpus"
    directory.mkdir()
    (directory / ".spool.crashed").write_text("left by a killed run")
    bad = write(tmp_path / "bad.txt", b"fine\n\xff\n")
    with pytest.raises(InputError, match=r"bad\.txt:2"):
        build_corpus(directory, [*sources, bad], None, 10, 7)
    assert list(directory.iterdir()) == []
    build_corpus(directory, sources, None, 10, 7)
    assert {path.name for path in directory.iterdir()} == {"sentences.arrow", "corpus.json"}


def test_a_finished_corpus_is_used_again(tmp_path: Path, sources: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = build_corpus(tmp_path / "corpus", sources, None, 10, 7)
    with monkeypatch.context() as patch:
        patch.setattr(corpus_module, "write_spool", None)  # it would fail if it built anything
        assert build_corpus(tmp_path / "corpus", sources, None, 10, 7) == corpus
    assert build_corpus(tmp_path / "corpus", sources, None, 10, 8) != corpus
    with open(sources[1], "a") as file:
        file.write("\none more\n")
    assert build_corpus(tmp_path / "corpus", sources, None, 10, 8).size == 491


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data.replace(b"second 17", b"second 71", 1),
        lambda data: b"",
        None,
    ],
)
def test_a_damaged_corpus_is_built_anew(
    tmp_path: Path, sources: list[str], damage: Callable[[bytes], bytes] | None
) -> None:
    corpus = build_corpus(tmp_path / "corpus", sources, None, 10, 7)
    expected = corpus.sentences(0, len(corpus))
    if damage is None:
        corpus.path.unlink()
    else:
        corpus.path.write_bytes(damage(corpus.path.read_bytes()))
    again = build_corpus(tmp_path / "corpus", sources, None, 10, 7)
    assert again == corpus and again.sentences(0, len(again)) == expected
    (tmp_path / "corpus" / "corpus.json").write_text("[]")
    assert build_corpus(tmp_path / "corpus", sources, None, 10, 7) == corpus


def test_duplicates_are_found_whatever_their_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 3, size=(5000, 2)).astype(np.uint64) * np.uint64(0x7777_7777_7777_7777)
    seen: set[tuple[int, int]] = set()
    expected = []
    for row in hashes.tolist():
        expected.append(tuple(row) not in seen)
        seen.add(tuple(row))
    assert corpus_module.first_occurrences(hashes).tolist() == expected


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    program = """
        import sys, tracemalloc
        from pathlib import Path
        import pyarrow as pa
        from distillation.data import corpus as sentences
        sentences.BATCH_ROWS, sentences.GATHER_ROWS = 256, 1024
        directory = Path(sys.argv[1])
        for count in (4_000, 24_000):
            source = directory / f"{count}.txt"
            with open(source, "w") as file:
                file.writelines(f"{number} " * 80 + "\\n" for number in range(count))
            tracemalloc.start()
            corpus = sentences.build_corpus(directory / str(count), [str(source)], None, 100, 1)
            for start in range(0, len(corpus) - 64, 4096):
                corpus.sentences(start, start + 64)
            print(tracemalloc.get_traced_memory()[1] + pa.default_memory_pool().max_memory())
            tracemalloc.stop()
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert result.returncode == 0, result.stderr
    small, large = map(int, result.stdout.split())
    assert (tmp_path / "24000" / "sentences.arrow").stat().st_size > 9e6
    # 20,000 more sentences are 9 MB more text; what may grow is the bookkeeping, 25 to 40 bytes for each of them
    assert large - small < 20_000 * 60


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
    pairs = read_sts("mine", write(tmp_path / (name + compressed), STS_FORMATS[name]))
    assert (pairs.name, pairs.sentences1, pairs.sentences2) == ("mine", ["a, b", "d"], ["c", "e"])
    assert pairs.scores.dtype == np.float64 and pairs.scores.tolist() == [1.5, 2.0]


def test_sts_columns_by_name(tmp_path: Path) -> None:
    source = write(tmp_path / "a.csv", "left,right,human\na,b,1\nc,d,2\n")
    assert read_sts("mine", f"{source}:left,right,human").sentences2 == ["b", "d"]
    with pytest.raises(InputError, match="name three columns"):
        read_sts("mine", f"{source}:left,right")


def test_sts_from_the_hub_takes_the_test_split(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load_dataset(name: str, config: str | None, split: str, streaming: bool) -> datasets.IterableDataset:
        assert (name, config, split) == ("owner/stsb", None, "test")
        rows = {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "score": [0.1, 0.2]}
        return datasets.Dataset.from_dict(rows).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read_sts("stsb", "owner/stsb").scores.tolist() == [0.1, 0.2]


def test_the_sts_benchmark_is_read_whole(shared_data: Path) -> None:
    for split, count in [("dev", 1500), ("test", 1379)]:
        pairs = read_sts(split, f"{shared_data}/stsb/sts-{split}.csv")
        assert len(pairs.scores) == len(pairs.sentences1) == len(pairs.sentences2) == count
        assert pairs.scores.min() >= 0 and pairs.scores.max() == 5


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
        read_sts("mine", write(tmp_path / name, content))


# Relevance judgements


@pytest.fixture
def retrieval(tmp_path: Path) -> Path:
    """A directory with queries, documents and relevance as text files."""
    directory = tmp_path / "retrieval"
    directory.mkdir()
    write(directory / "queries.txt", "first\nsecond\nthird\n")
    write(directory / "documents.txt", "a\nb\nb\n")
    write(directory / "relevance.tsv", "0\t2\n0\t1\t3\n1\t0\t0\n2\t0\n")
    return directory


def test_a_retrieval_directory_and_the_same_three_files(retrieval: Path) -> None:
    names = [str(retrieval / name) for name in ["queries.txt", "documents.txt", "relevance.tsv"]]
    for source in [str(retrieval), ",".join(names)]:
        judged = read_retrieval("mine", source)
        assert (judged.name, judged.queries) == ("mine", ["first", "third"])  # the second has no relevant document
        assert judged.documents == ["a", "b", "b"]  # the same text twice stays
        assert judged.relevant == [{1, 2}, {0}]


def test_a_beir_directory(tmp_path: Path) -> None:
    write(tmp_path / "queries.jsonl", '{"_id": "q1", "text": "first"}\n{"_id": "q2", "text": "second"}\n')
    write(
        tmp_path / "corpus.jsonl.gz",
        '{"_id": "d1", "title": "A", "text": "b"}\n{"_id": "d2", "title": "", "text": ""}\n',
    )
    (tmp_path / "qrels").mkdir()
    write(tmp_path / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore\nq2\td1\t1\nq1\td2\t2\n")
    judged = read_retrieval("beir", str(tmp_path))
    assert (judged.queries, judged.documents) == (["first", "second"], ["A b", ""])
    assert judged.relevant == [{1}, {0}]


def test_parallel_files(tmp_path: Path) -> None:
    names = [write(tmp_path / f"{name}.gz", f"{name}1\n{name}2\n") for name in "abc"]
    judged = read_retrieval("captions", "parallel:" + ",".join(names))
    assert (judged.queries, judged.documents) == (["a1", "a2"], ["b1", "b2", "c1", "c2"])
    assert judged.relevant == [{0, 2}, {1, 3}]


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
        write(retrieval / name, content)
    with pytest.raises(InputError, match=message):
        read_retrieval("mine", str(retrieval))


def test_bad_parallel_files_are_named(tmp_path: Path) -> None:
    names = [write(tmp_path / name, text) for name, text in [("a", "1\n2\n"), ("b", "1\n"), ("c", "1\n\n"), ("d", "")]]
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
    check_only_input_errors(lambda: sources_module.parse_source(source, "train"))


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
