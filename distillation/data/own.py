"""Which of a user's own documents a run does not train on, so that it can be judged by them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shortstack.distillation.data.documents import DOCUMENTS
from shortstack.distillation.data.passages import is_cut
from shortstack.distillation.data.sentences import files_of
from shortstack.distillation.data.sources import parse_source, split_marks, suffix_of

SHARE = 10  # one document of so many is held out,
FEW = 3  # but so many where that would be fewer, and never more than a third


@dataclass(frozen=True)
class Own:
    """What is the user's among the sources of a corpus that has general text beside.

    Attributes:
        sources: the user's, which stand first in the corpus.
        held_out: documents of theirs that are not trained on, by name; () holds out single texts instead.
    """

    sources: tuple[str, ...]
    held_out: tuple[Path, ...] = ()

    @classmethod
    def of(cls, sources: Sequence[str], seed: int) -> "Own":
        """Hold out about a tenth of the documents that can have headings, drawn by the seed; none of fewer than three.

        Raises:
            InputError: a source that is not there.
        """
        documents = sorted({file for source in sources for file in documents_of(source)})
        count = max(len(documents) // SHARE, min(FEW, len(documents) // 3))
        drawn = np.random.default_rng(seed).permutation(len(documents))[:count]
        return cls(tuple(sources), tuple(documents[index] for index in sorted(drawn)))

    def parts(self, others: Sequence[str]) -> list["Part"]:
        """The files of all sources in the order of a corpus: held out, the user's others, and the sources beside."""
        held = [Part(source, chosen(source, self.held_out)) for source in self.sources]
        rest = [
            Part(source, [file for file in files_of_source(source) if file not in self.held_out])
            for source in self.sources
        ]
        return [part for part in held + rest if part.files] + [Part(source) for source in others]


@dataclass(frozen=True)
class Part:
    """Some files of a source; None stands for all of it."""

    source: str
    files: Sequence[Path | None] | None = None


def files_of_source(source: str) -> list[Path | None]:
    """The files of a source with marks; None stands for a dataset."""
    return files_of(parse_source(split_marks(source)[1], default_split="train"))


def chosen(source: str, files: Collection[Path]) -> list[Path | None]:
    """Those of a source's files that are among `files`."""
    return [file for file in files_of_source(source) if file in files]


def documents_of(source: str) -> list[Path]:
    """The files of a source that can have headings and are read as passages."""
    reading = split_marks(source)[0].reading
    return [
        file for file in files_of_source(source)
        if file is not None and suffix_of(file) in DOCUMENTS and is_cut(reading, file)
    ]  # fmt: skip
