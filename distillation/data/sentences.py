"""The text to train on: the sentences of a source."""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from shortstack.distillation.data.passages import ESTIMATE, Cutter, is_cut, text_paragraphs
from shortstack.distillation.data.sources import LONGEST, Marks, Source, marked_source, read_source
from shortstack.model.files import InputError

TEXT_COLUMN = re.compile(
    r"(sentence|text|anchor|positive|negative|query|question|answer|premise|hypothesis|caption|title|passage|document)"
    r"(_?\d+)?$",
    re.IGNORECASE,
)


class Texts(NamedTuple):
    """n sentences, each with its role: query, document or "" (the default prompt)."""

    sentences: list[str]
    roles: list[str]


def read_sentences(
    source: str, cutter: Cutter = ESTIMATE, files: Sequence[Path | None] | None = None
) -> Iterator[str]:  # fmt: skip
    """The sentences of a source, in order, stripped, none empty, the first LONGEST characters; repetitions stay.

    Without column names, every column with a usual name (sentence1, anchor, premise, text, ...) is read. If the source
    is read as passages, `cutter` cuts every text, or every paragraph of a plain text or Markdown file. `files`
    are those of the source to read, None for all.

    Raises:
        InputError: no such source, nothing in it, or a row that cannot be read, named by file and line.
    """
    marks, parsed = marked_source(source)
    is_empty = True
    for file in files_of(parsed) if files is None else files:
        for text in sentences_of(file, marks, parsed, cutter):
            is_empty = False
            yield text
    if is_empty and files is None:
        raise InputError(f"{source}: no sentences in it")


def sentences_of(file: Path | None, marks: Marks, parsed: Source, cutter: Cutter) -> Iterator[str]:
    """The sentences of one file of a source that is parsed already, or of a dataset (None); see `read_sentences`."""
    texts = read_texts_of(parsed if file is None else dataclasses.replace(parsed, files=[file]))
    if is_cut(marks.reading, file):
        texts = cutter.cut(text_paragraphs(texts, file))
    yield from filter(None, (text.strip()[:LONGEST] for text in texts))


def files_of(parsed: Source) -> list[Path | None]:
    """A source's files; None stands for a dataset."""
    return [*parsed.files] or [None]


def in_passages(source: str) -> bool:
    """Whether a source, or some of its files, is read as passages."""
    marks, parsed = marked_source(source)
    return any(is_cut(marks.reading, file) for file in files_of(parsed))


def read_texts_of(parsed: Source) -> Iterator[str]:
    """The texts of a source's columns, row by row."""
    for where, number, row in read_source(parsed):
        names = parsed.columns or text_columns(tuple(row))
        missing = [name for name in names if name not in row]
        if missing or not names:
            what = f"no column {missing[0]!r}" if missing else "no column with a usual name for text"
            listed = ", ".join(itertools.islice(row, 20))
            raise InputError(f"{where}:{number}: {what}; name some of these after a colon: {listed}")
        for name in names:
            sentence = row[name]
            if isinstance(sentence, str):
                yield sentence
            elif sentence is not None and parsed.columns:
                raise InputError(f"{where}:{number}: column {name!r} holds {type(sentence).__name__}, not text")


@lru_cache(maxsize=256)
def text_columns(names: tuple[str, ...]) -> list[str]:
    """The columns that hold text, by their usual names."""
    return [name for name in names if TEXT_COLUMN.match(name)]
