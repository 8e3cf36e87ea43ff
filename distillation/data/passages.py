"""Passages: long text cut at sentence ends, so that the teacher reads every part of it to its end.

A plain text file read as lines gives one sentence a line. Read as passages it gives its paragraphs, whole if they fit,
else cut into parts of about equal length. Markdown, ReST, HTML and PDF are read in this way unless the source is marked
as lines, and without their markup and code; see documents.py.
"""

import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shortstack.distillation.data.documents import DOCUMENTS, PDF, blocks_of, passages_of
from shortstack.distillation.data.sources import LINE_LIMIT, LONGEST, TABLES, suffix_of
from shortstack.model import Embedder
from shortstack.model.files import InputError

WRAPPED = 120  # characters; a longer line is a paragraph of its own, shorter ones may be parts of one
MOST_LINES = 1000  # of a paragraph: what has no blank lines is no reason to read all of it into memory

# Words before a full stop that does not end the sentence: never, and only sometimes.
NEVER_LAST = (
    " mr mrs ms dr st mt ft prof rev hon gen col lt sgt capt cmdr adm maj gov sen rep pres vs viz cf ca c fl no nos vol"
    " vols fig figs pp p ed eds trans approx e.g i.e b d r al lit incl esp nr ch "
)
SOMETIMES_LAST = " jr sr inc ltd co corp bros etc ph.d jan feb mar apr jun jul aug sept sep oct nov dec "
STARTERS = (
    " a after all although an and as at but by during for from he her his however if in it its many most on other"
    " others she since some such that the their there these they this those though to under until we when while with "
)
BOUNDARY = re.compile(r"(?<=[.!?])([\"'”’)\]]*)\s+(?=[\"'“‘(\[]*[A-ZÀ-Þ0-9])")


# -- cutting ---------------------------------------------------------------------------------------------------------


def estimate_tokens(texts: Sequence[str]) -> list[int]:
    """Tokens of each text where no tokenizer is at hand: English has about 4 characters a token."""
    return [len(text) // 4 + 1 for text in texts]


@dataclass(frozen=True)
class Cutter:
    """Cuts paragraphs into passages.

    Attributes:
        limit: the largest number of tokens of a passage.
        count: gives the number of tokens of each text, without [CLS] and [SEP].
        name: differs between cutters that cut in different places.
    """

    limit: int = 254
    count: Callable[[Sequence[str]], list[int]] = estimate_tokens
    name: str = "estimate"

    def cut(self, paragraphs: Iterable[str]) -> Iterator[str]:
        """The paragraphs that fit as they are, the others cut at sentence ends into parts of about equal length."""
        for paragraph in paragraphs:
            if self.count([paragraph])[0] <= self.limit:
                yield paragraph
                continue
            sentences = [part for sentence in split_sentences(paragraph) for part in self._parts(sentence)]
            counts = self.count(sentences)
            target = sum(counts) / max(1, -(-sum(counts) // self.limit))
            passage: list[str] = []
            length = 0
            for sentence, tokens in zip(sentences, counts, strict=True):
                if passage and (length >= target or length + tokens > self.limit):
                    yield " ".join(passage)
                    passage, length = [], 0
                passage.append(sentence)
                length += tokens
            yield " ".join(passage)

    def _parts(self, sentence: str) -> Iterator[str]:
        """A sentence, halved at a space until each part fits; in the middle of a word where there is no space."""
        if len(sentence) < 2 or self.count([sentence])[0] <= self.limit:
            yield sentence
            return
        middle = len(sentence) // 2
        spaces = [index for index in (sentence.rfind(" ", 1, middle), sentence.find(" ", middle, -1)) if index > 0]
        cut = min(spaces, key=lambda space: abs(space - middle)) if spaces else middle
        yield from self._parts(sentence[:cut].strip())
        yield from self._parts(sentence[cut:].strip())


ESTIMATE = Cutter()


def cutter_of(embedder: Embedder) -> Cutter:
    """A cutter whose passages the model reads to their end, whichever of its prompts goes before them."""
    prompts = embedder.tokenize(list(embedder.settings.prompts.values()) or [""])
    # One less than fits: the tokenizer truncates, so a text of exactly the limit may have been longer.
    limit = max(1, embedder.settings.max_length - max(map(len, prompts)) - 1)
    tokenizer = hashlib.sha256(embedder.tokenizer.backend_tokenizer.to_str().encode()).hexdigest()

    def count(texts: Sequence[str]) -> list[int]:
        return [len(tokens) - 2 for tokens in embedder.tokenize(texts)]

    return Cutter(limit, count, f"{limit} tokens of {tokenizer}")


def is_cut(reading: str, file: Path | None) -> bool:
    """Whether a file, or a dataset (None), is cut to passages; `reading` is its source's mark, "" for none."""
    return reading == "passages" or (not reading and file is not None and suffix_of(file) in (*DOCUMENTS, PDF))


# -- paragraphs ------------------------------------------------------------------------------------------------------


def text_paragraphs(texts: Iterable[str], file: Path | None) -> Iterator[str]:
    """The paragraphs of a file's texts: of lines that belong together, or of each cell of a table by itself."""
    if file is not None and suffix_of(file) in DOCUMENTS:
        yield from passages_of(blocks_of(whole(texts, file), suffix_of(file)))
        return
    if file is not None and suffix_of(file) not in TABLES:
        yield from paragraphs_of(texts)
        return
    for text in texts:
        yield from paragraphs_of(text.splitlines())


def whole(lines: Iterable[str], file: Path) -> str:
    """A document's text, which has to be in memory as a whole.

    Raises:
        InputError: it is too long for that.
    """
    kept, size = [], 0
    for line in lines:
        kept.append(line)
        size += len(line) + 1
        if size > LINE_LIMIT:
            what = f"a document of more than {LINE_LIMIT:,} characters"
            raise InputError(f"{file}: {what}; split it, or read it line by line, as lines@{file}")
    return "\n".join(kept)


def paragraphs_of(lines: Iterable[str]) -> Iterator[str]:
    """Lines joined to paragraphs: a blank line ends one, and a line of more than WRAPPED characters is one."""
    paragraph: list[str] = []
    for line in itertools.chain(lines, [""]):
        line = " ".join(line.split())
        if len(line) > WRAPPED or not line:
            yield from joined(paragraph)
            paragraph = []
            yield from joined([line])
        else:
            paragraph.append(line)
            if len(paragraph) == MOST_LINES:
                yield from joined(paragraph)
                paragraph = []


def joined(lines: list[str]) -> Iterator[str]:
    """One paragraph, if there is a letter in it; several, where it is longer than a text may be."""
    paragraph = " ".join(lines)
    while len(paragraph) > LONGEST:
        end = paragraph.rfind(" ", 1, LONGEST) + 1 or LONGEST
        yield from joined([paragraph[:end].strip()])
        paragraph = paragraph[end:]
    if any(character.isalpha() for character in paragraph):
        yield paragraph


# -- sentences -------------------------------------------------------------------------------------------------------


def split_sentences(paragraph: str) -> Iterator[str]:
    """Split at full stops, question and exclamation marks that a capital or a figure follows, abbreviations apart."""
    start = 0
    for match in BOUNDARY.finditer(paragraph):
        words = paragraph[start : match.start()].split()
        word = words[-1].lstrip("\"'([").lower() if words else ""
        following = re.match(r"[\"'(\[]*(\w+)", paragraph[match.end() :])
        starter = following is not None and f" {following[1].lower()} " in STARTERS
        if word.endswith(".") and not match[1]:
            word = word[:-1]
            initials = len(word) == 1 or re.fullmatch(r"\w(\.\w)+", word) is not None
            if f" {word} " in NEVER_LAST or ((initials or f" {word} " in SOMETIMES_LAST) and not starter):
                continue
        yield paragraph[start : match.end(1)].strip()
        start = match.end()
    yield paragraph[start:].strip()
