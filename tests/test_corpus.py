"""The corpus: distinct, shuffled, some held out; the same for the same seed, used again, built again after damage."""

import os
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from processes import in_a_process
from tiny import put

from shortstack.distillation.data import corpus as module
from shortstack.distillation.data import on_disk
from shortstack.distillation.data.corpus import Draw, build_corpus, open_corpus
from shortstack.distillation.data.passages import ESTIMATE
from shortstack.distillation.ranks import ALONE, Ranks
from shortstack.distillation.recipe import Recipe
from shortstack.model.files import InputError


@pytest.fixture
def sources(tmp_path: Path) -> list[str]:
    """Two sources: 300 sentences, each twice; 200 more, and 100 of the first again."""
    first = [f"first {number}" for number in range(300)]
    second = [f"second {number}" for number in range(200)] + first[:100]
    return [put(tmp_path / "a.txt", "\n".join(first * 2)), put(tmp_path / "b.txt", "\n".join(second))]


@pytest.mark.parametrize("sampling", ["mixed", "in_order"])
def test_corpus_is_distinct_shuffled_and_disjoint(tmp_path: Path, sources: list[str], sampling: str) -> None:
    corpus = build_corpus(tmp_path / "corpus", sources, Draw(None, 60, 42, sampling))
    training, evaluation = corpus.training(0, len(corpus)).sentences, corpus.evaluation().sentences
    assert (len(corpus), corpus.size, corpus.evaluation_size) == (440, 440, 60)
    assert len(set(training) | set(evaluation)) == 500 == len(training) + len(evaluation)
    assert training != sorted(training) and any(text.startswith("second") for text in training[:50])
    counts = [sum(text.startswith(word) for text in training) for word in ["first", "second"]]
    assert corpus.counts == dict(zip(sources, counts, strict=True))


def test_rows_are_found_by_number(tmp_path: Path, sources: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_ROWS", 32)
    monkeypatch.setattr(module, "GATHERED", 2)
    corpus = build_corpus(tmp_path / "corpus", sources, Draw(400, 100, 42))
    training = corpus.training(0, 400).sentences
    assert len(set(training)) == 400
    assert corpus.training(30, 70) == (training[30:70], 40 * [""]) and corpus.training(5, 5).sentences == []
    for bad in [(399, 401), (-1, 3)]:
        with pytest.raises(IndexError):
            corpus.training(*bad)


def test_the_same_seed_gives_the_same_corpus_and_another_does_not(tmp_path: Path, sources: list[str]) -> None:
    corpora = [
        build_corpus(tmp_path / name, sources, Draw(300, 50, seed)) for name, seed in [("a", 1), ("b", 1), ("c", 2)]
    ]
    texts = [(corpus.training(0, 300).sentences, corpus.evaluation()) for corpus in corpora]
    assert texts[0] == texts[1] and corpora[0].fingerprint == corpora[1].fingerprint
    assert texts[0] != texts[2] and corpora[0].fingerprint != corpora[2].fingerprint
    batches = list(corpora[0].file.batches())
    assert module.fingerprint_of(batches, 300) == corpora[0].fingerprint  # the split is part of it
    assert module.fingerprint_of(batches, 299) != corpora[0].fingerprint


def test_in_order_uses_up_the_first_source_before_the_second(tmp_path: Path, sources: list[str]) -> None:
    corpus = build_corpus(tmp_path / "corpus", sources, Draw(350, 41, 7, "in_order"))
    evaluation = corpus.evaluation().sentences
    assert sum(text.startswith("first") for text in evaluation) == 21
    assert sum(text.startswith("second") for text in evaluation) == 20
    assert corpus.counts == {sources[0]: 300 - 21, sources[1]: 350 - (300 - 21)}
    second = [int(text.split()[1]) for text in corpus.training(0, 350).sentences if text.startswith("second")]
    assert second != sorted(second) and max(second) > 100  # cut at random, not at the end
    within_the_first = build_corpus(tmp_path / "corpus", sources, Draw(100, 0, 7, "in_order"))
    assert within_the_first.counts == {sources[0]: 100, sources[1]: 0} and within_the_first.evaluation().sentences == []


@pytest.mark.parametrize(
    "sampling, held_out, message",
    [
        ("mixed", 500, "500 distinct sentences, but 500 to hold out and 1"),
        ("in_order", 450, "source 2 of 2 adds 200 distinct sentences, but 225"),
        ("in_order", 402, "source 2 of 2 adds 200 distinct"),
    ],
)
def test_corpora_that_cannot_be_are_refused(
    tmp_path: Path, sources: list[str], sampling: str, held_out: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build_corpus(tmp_path / "corpus", sources, Draw(None, held_out, 7, sampling))
    assert not [path for path in tmp_path.rglob("*") if ".spool" in path.name or path.suffix == ".arrow"]


def test_the_spool_goes_away_also_on_error_and_after_a_crash(tmp_path: Path, sources: list[str]) -> None:
    directory = tmp_path / "corpus"
    directory.mkdir()
    (directory / ".spool.crashed").write_text("left by a killed run")
    bad = put(tmp_path / "bad.txt", b"fine\n\xff\n")
    with pytest.raises(InputError, match=r"bad\.txt:2"):
        build_corpus(directory, [*sources, bad], Draw(None, 10, 7))
    assert list(directory.iterdir()) == []
    build_corpus(directory, sources, Draw(None, 10, 7))
    assert {path.name for path in directory.iterdir()} == {"sentences.arrow", "corpus.json"}


def test_a_finished_corpus_is_used_again(tmp_path: Path, sources: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = build_corpus(tmp_path / "corpus", sources, Draw(None, 10, 7))
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_spool", None)  # it would fail if it built anything
        assert build_corpus(tmp_path / "corpus", sources, Draw(None, 10, 7)) == corpus
    assert build_corpus(tmp_path / "corpus", sources, Draw(None, 10, 8)) != corpus
    with open(sources[1], "a") as file:
        file.write("\none more\n")
    assert build_corpus(tmp_path / "corpus", sources, Draw(None, 10, 8)).size == 491


def test_other_ranks_only_open_what_rank_0_wrote(
    tmp_path: Path, sources: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ranks, "wait_for_all", lambda self: None)
    recipe = Recipe(sentences=sources, output=str(tmp_path / "runs"), evaluation_sentences=10)
    other = Ranks(1, 2, torch.device("cpu"))
    corpus = open_corpus(recipe, ESTIMATE, ALONE)
    assert open_corpus(recipe, ESTIMATE, other) == corpus
    spool = corpus.path.with_name(".spool.of_another_rank")
    spool.touch()
    os.utime(sources[0], (1, 1))
    message = "rank 1 doesn't find the text there as rank 0 read it; --output must be shared, and the text must have"
    with pytest.raises(InputError, match=f"^{re.escape(str(corpus.path.parent))}: {message}"):
        open_corpus(recipe, ESTIMATE, other)
    assert spool.exists()


@pytest.mark.parametrize("pattern", ["", "/*.md"])
def test_a_file_name_in_another_encoding_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    try:
        (docs / os.fsdecode(b"caf\xe9.md")).write_text("A text of four words.")
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    monkeypatch.setattr(module, "write_spool", None)
    with pytest.raises(InputError, match=r"docs/caf\\udce9\.md' is not UTF-8; rename the file"):
        build_corpus(tmp_path / "corpus", [f"{docs}{pattern}"], Draw(None, 1, 7))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data.replace(b"second 17", b"second 71", 1),
        lambda data: b"",
        None,
    ],
)
def test_a_damaged_corpus_is_built_again(
    tmp_path: Path, sources: list[str], damage: Callable[[bytes], bytes] | None
) -> None:
    corpus = build_corpus(tmp_path / "corpus", sources, Draw(None, 10, 7))
    expected = corpus.training(0, len(corpus)).sentences
    if damage is None:
        corpus.path.unlink()
    else:
        corpus.path.write_bytes(damage(corpus.path.read_bytes()))
    again = build_corpus(tmp_path / "corpus", sources, Draw(None, 10, 7))
    assert again == corpus and again.training(0, len(again)).sentences == expected
    (tmp_path / "corpus" / "corpus.json").write_text("[]")
    assert build_corpus(tmp_path / "corpus", sources, Draw(None, 10, 7)) == corpus


@pytest.mark.parametrize("run", [7, 500, 10_000])
def test_duplicates_are_found_whatever_their_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: int) -> None:
    monkeypatch.setattr(on_disk, "RUN", run)
    rng = np.random.default_rng(0)
    few = rng.integers(0, 3, size=(600, 2)).astype(np.uint64) * np.uint64(0x7FFF_FFFF_FFFF_FFFF)
    many = rng.integers(0, 2**63, size=(600, 2)).astype(np.uint64) * np.uint64(2)
    hashes = [row.tobytes() for row in np.concatenate([few, many])]
    with (tmp_path / "hashes").open("w+b") as file:
        first = on_disk.FirstRows(file)
        for value in hashes:
            first.add(value)
        found = first.ascending(tmp_path)
    assert found.tolist() == sorted({value: row for row, value in reversed([*enumerate(hashes)])}.values())


def peak_memory(directory: Path, count: int) -> int:
    """Bytes that Python and Arrow hold at most while a corpus of so many lines is built and read."""
    module.BATCH_ROWS, module.GATHERED, module.RUN, on_disk.RUN = 256, 4, 1024, 1024
    small = put(directory / "small.txt", "\n".join(map(str, range(200))))
    build_corpus(directory / "small", [small], Draw(None, 100, 1))  # imports what the other needs
    source = directory / f"{count}.txt"
    with open(source, "w") as file:
        file.writelines(f"{number:05} " * 80 + "\n" for number in range(count))
    tracemalloc.start()
    corpus = build_corpus(directory / str(count), [str(source)], Draw(None, 100, 1))
    for start in range(0, len(corpus) - 64, 4096):
        corpus.training(start, start + 64)
    return tracemalloc.get_traced_memory()[1] + pa.default_memory_pool().max_memory()


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    small, large = (in_a_process(peak_memory, tmp_path, count) for count in (6_000, 24_000))
    assert (tmp_path / "24000" / "sentences.arrow").stat().st_size > 9e6
    assert large - small < 18_000 * 2  # 8 MB more text, of which some bytes for each batch stay in memory
