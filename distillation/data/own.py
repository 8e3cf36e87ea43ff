"""Which of a user's own documents a run does not train on, so that it can be judged by them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shortstack.distillation.data.documents import DOCUMENTS
from shortstack.distillation.data.passages import is_cut
from shortstack.distillation.data.sentences import files_of
from shortstack.distillation.data.sources import Marks, marked_source, suffix_of

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
        """Hold out about a tenth of the documents that can have headings, by the seed; none of fewer than three."""
        parsed = map(marked_source, sources)
        documents = sorted({file for marks, each in parsed for file in each.files if has_headings(file, marks)})
        count = max(len(documents) // SHARE, min(FEW, len(documents) // 3))
        drawn = np.random.default_rng(seed).permutation(len(documents))[:count]
        return cls(tuple(sources), tuple(documents[index] for index in sorted(drawn)))

    def parts(self, others: Sequence[str]) -> list["Part"]:
        """The files of all sources in the order of a corpus: held out, the user's others, and the sources beside."""
        apart = set(self.held_out)
        files = {source: files_of(marked_source(source)[1]) for source in self.sources}
        parts = [
            Part(source, [file for file in files[source] if (file in apart) is held_out])
            for held_out in (True, False)
            for source in self.sources
        ]
        return [part for part in parts if part.files] + [Part(source) for source in others]


@dataclass(frozen=True)
class Part:
    """Some files of a source; None stands for all of it."""

    source: str
    files: Sequence[Path | None] | None = None


def has_headings(file: Path, marks: Marks) -> bool:
    """Whether a file of a source with these marks can have headings and is read as passages."""
    return suffix_of(file) in DOCUMENTS and is_cut(marks.reading, file)
