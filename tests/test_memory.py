"""However large a file of text is, and however it is made, memory stays bounded: a limit of the system holds."""

import gzip
import io
import itertools
import random
import resource
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from processes import in_a_process
from tiny import edit, load

from shortstack.distillation.data import corpus as corpora
from shortstack.distillation.data import sources
from shortstack.distillation.data.labels import label_corpus
from shortstack.distillation.data.passages import text_paragraphs
from shortstack.distillation.data.sentences import read_sentences
from shortstack.distillation.data.sources import LINE_LIMIT, LONGEST, read_rows
from shortstack.distillation.ranks import ALONE
from shortstack.distillation.recipe import Recipe
from shortstack.model import Embedder
from shortstack.model import embedder as module
from shortstack.model.files import InputError

MORE = 300  # MB beside what the imports take


def read_and_label(teacher: Path, place: Path, source: str, lines: int = 0) -> tuple[int, int]:
    """Read a source, or so many generated lines, label it, and read some again, with no more memory than MORE beyond
    what there is at first. A limit on data, not on addresses: files that are mapped take none.

    Returns how many training texts there are, and the longest of the first three."""
    embedder = load(teacher)
    embedder.encode(["one sentence"])
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    limit = (int(status["VmData"].split()[0]) << 10) + MORE * 10**6
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    if lines:
        corpora.read_sentences = lambda *_: (f"{7919 * number % (lines - lines // 4)} seen" for number in range(lines))
    corpus = corpora.build_corpus(place / "corpus", [source], corpora.Draw(None, 2, 1))
    if not lines:
        label_corpus(embedder, corpus, Recipe(output=str(place)), ALONE)
    return len(corpus), max(map(len, corpus.training(0, 3).sentences))


def long_lines(path: Path, count: int, letters: int) -> str:
    """Lines of so many letters, packed to a thousandth."""
    with gzip.open(path, "wt", compresslevel=1) as file:
        for number in range(count):
            file.write(f"{number} " + "the dog sees a cat " * (letters // 19) + "\n")
    return str(path)


def long_cells(path: Path, count: int, letters: int) -> str:
    """One row group of a Parquet file, texts of so many letters, each a page of its own."""
    options = {"compression": "zstd", "use_dictionary": False, "write_statistics": False, "write_batch_size": 1}
    texts = [f"{number} " + "the dog sees a cat " * (letters // 19) for number in range(count)]
    parquet.write_table(pa.table({"text": texts}), path, row_group_size=count, **options)
    return str(path)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux limits a process's data")
@pytest.mark.parametrize(
    "write, count, letters, name",
    [
        (long_lines, 25, 15 * 10**6, "lines.txt.gz"),  # 375 MB in a file of some MB
        (long_cells, 80, 4 * 10**6, "cells.parquet"),
        pytest.param(long_lines, 4000, 10**6, "lines.txt.gz", marks=pytest.mark.long),  # 4 GB
        pytest.param(long_cells, 1000, 4 * 10**6, "cells.parquet", marks=pytest.mark.long),
    ],
)
def test_a_large_file_is_read_and_labelled_in_bounded_memory(
    tmp_path: Path, tiny_model_dir: Path, write: Callable[[Path, int, int], str], count: int, letters: int, name: str
) -> None:
    found = in_a_process(read_and_label, tiny_model_dir, tmp_path, write(tmp_path / name, count, letters))
    assert found == (count - 2, LONGEST)


@pytest.mark.long
@pytest.mark.parametrize("lines", [5_000_000, 20_000_000])
def test_memory_does_not_grow_with_the_number_of_lines(tmp_path: Path, tiny_model_dir: Path, lines: int) -> None:
    (tmp_path / "a.txt").write_text("a line")
    found = in_a_process(read_and_label, tiny_model_dir, tmp_path, str(tmp_path / "a.txt"), lines)
    assert found[0] == lines - lines // 4 - 2


def test_a_row_group_is_not_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts, sizes = [random.Random(number).randbytes(10_000).hex() for number in range(400)], []
    parquet.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", use_dictionary=False, write_batch_size=1)

    class Noting(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:
            sizes.append(size)
            return super().read(size)

    monkeypatch.setattr(sources, "open_file", Noting)
    assert [row["text"] for _, row in read_rows(tmp_path / "a.parquet")] == texts
    assert max(sizes) < 2**21


def test_lines_without_a_blank_one_and_a_line_without_end_are_cut() -> None:
    assert len(next(text_paragraphs(itertools.repeat("the dog sees"), Path("a.txt")))) < 20_000
    words = [f"word{number}" for number in range(50_000)]
    pieces = list(text_paragraphs([" ".join(words)], Path("a.txt")))
    assert " ".join(pieces).split() == words and max(map(len, pieces)) <= LONGEST


def test_a_cell_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"text": ["short", "é" * (LINE_LIMIT // 2)]}), path)
    with pytest.raises(InputError, match=r"a\.parquet: after row 0 a text of more than 16,777,216 bytes"):
        list(read_rows(path))


def test_a_document_beyond_the_limit_is_refused(tmp_path: Path, tiny_model_dir: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("a line of text\n" * (LINE_LIMIT // 15 + 1))
    with pytest.raises(InputError, match=r"a\.md: a document of more than 16,777,216 characters; split it, or read it"):
        next(read_sentences(str(path)))
    assert next(read_sentences(f"lines@{path}")) == "a line of text"


def test_a_prompt_of_megabytes_is_refused(model_copy: Path) -> None:
    edit(model_copy / "config_sentence_transformers.json", prompts={"query": "x" * 10**7}, default_prompt_name="query")
    with pytest.raises(InputError, match="a prompt of more than 16,384 characters"):
        Embedder.load(model_copy, "cpu", "fp32")


def test_tokens_do_not_depend_on_how_many_texts_are_tokenised_together(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder, draw = Embedder.load(tiny_model_dir, "cpu", "fp32"), random.Random(0)
    texts = ["the dog sees a cat " * draw.randrange(40) for _ in range(100)]
    wanted = list(embedder.tokenize(texts, "a prompt "))
    monkeypatch.setattr(module, "TOKENIZED_LETTERS", 300)
    assert [ids.tolist() for ids in embedder.tokenize(texts, "a prompt ")] == [ids.tolist() for ids in wanted]
    assert len(embedder.tokenize([])) == 0
