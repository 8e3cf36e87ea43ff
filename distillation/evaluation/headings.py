"""Queries made from a user's own documents: each heading asks for the paragraphs below it."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from shortstack.distillation.data.documents import DOCUMENTS, blocks_of
from shortstack.distillation.data.passages import ESTIMATE, Cutter, whole
from shortstack.distillation.data.sources import read_lines, suffix_of
from shortstack.distillation.evaluation.sets import RetrievalSet


def heading_queries(
    name: str, files: Sequence[Path], cutter: Cutter = ESTIMATE, others: Iterable[str] = ()
) -> RetrievalSet:
    """Headings as queries, all paragraphs as documents; the paragraphs below a heading, up to the next, answer it.

    `files` are not trained on; all but Markdown, ReST and HTML are skipped. `cutter` cuts long paragraphs, as it does
    in the text to train on. `others` are documents that answer none of the headings.

    Raises:
        InputError: a file that cannot be read.
    """
    answers: dict[str, dict[int, float]] = {}  # a heading that occurs several times, as "Example" does, has all of them
    documents: dict[str, int] = {}
    for file in files:
        for heading, passage in paragraphs_below(file, cutter):
            index = documents.setdefault(passage, len(documents))
            if heading:
                answers.setdefault(heading, {})[index] = 1.0
    for passage in others:
        documents.setdefault(passage, len(documents))
    return RetrievalSet(name, list(answers), list(documents), list(answers.values()))


def paragraphs_below(file: Path, cutter: Cutter) -> Iterator[tuple[str, str]]:
    """The passages of a document's paragraphs, each after the heading above it ("" before the first one)."""
    if suffix_of(file) not in DOCUMENTS:
        return
    heading = ""
    for block in blocks_of(whole((line for _, line in read_lines(file)), file), suffix_of(file)):
        if block.is_heading:
            heading = block.text
        else:
            yield from ((heading, passage) for passage in cutter.cut([block.text]))
