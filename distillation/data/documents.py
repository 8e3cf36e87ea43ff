"""Documents as a reader sees them: the headings and paragraphs of Markdown, ReST and HTML, without markup and code.

PDF has no headings that a program can tell: it gives lines of text.
"""

import re
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

from shortstack.model.files import InputError, first_line

MARKDOWN = (".md", ".markdown")
REST = (".rst", ".rest")
HTML = (".html", ".htm", ".xhtml")
DOCUMENTS = (*MARKDOWN, *REST, *HTML)
PDF = ".pdf"

FRONT_MATTER = re.compile(r"---\n.*?\n---\n", re.DOTALL)
# HTML elements that end a paragraph, and those that hold no prose.
BLOCKS = re.compile("p|div|li|dd|dt|h[1-6]|section|article|blockquote|br|hr|ul|ol|dl|body|figcaption")
NO_PROSE = re.compile("pre|script|style|nav|header|footer|table|head|svg|form|button|template")
# ReST directives whose body is prose.
PROSE_DIRECTIVES = re.compile(
    "note|warning|tip|important|caution|attention|hint|danger|seealso|admonition|topic|version(added|changed)|deprecated"
)
UNDERLINE = re.compile(r"([=\-`:.'\"~^_*+#<>])\1{2,}\s*$")


class Block(NamedTuple):
    """A heading or a paragraph, without markup, in one line."""

    text: str
    is_heading: bool


def blocks_of(text: str, suffix: str) -> Iterator[Block]:
    """The headings and paragraphs of a document, those without a letter left out.

    Args:
        text: the whole document.
        suffix: one of DOCUMENTS, in lower case.
    """
    read = markdown_blocks if suffix in MARKDOWN else html_blocks if suffix in HTML else rest_blocks
    for block in read(text):
        line = " ".join(block.text.split())
        if any(character.isalpha() for character in line):
            yield Block(line, block.is_heading)


def passages_of(blocks: Iterable[Block]) -> Iterator[str]:
    """The texts of a document to train on; headings and items of only a word or two are left out."""
    return (block.text for block in blocks if len(block.text.split()) >= 3)


# -- Markdown --------------------------------------------------------------------------------------------------------


def markdown_blocks(text: str) -> Iterator[Block]:
    """The blocks of CommonMark with tables. Code, tables, raw HTML and front matter are left out."""
    from markdown_it import MarkdownIt  # here, because only documents need it

    text = FRONT_MATTER.sub("", text, count=1) if text.startswith("---\n") else text
    tables, heading = 0, False
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        tables += token.nesting if token.type.startswith("table") else 0
        if token.type in ("heading_open", "paragraph_open"):
            heading = token.type == "heading_open"
        elif token.type == "inline" and not tables:
            prose = [child.content if child.type in ("text", "code_inline") else " " * child.type.endswith("break")
                     for child in token.children or []]  # fmt: skip
            line = "".join(prose)
            if not re.match(r"\[![A-Z]+\]\s*$|:::|\[\^", line):  # a note's mark, a container, a footnote
                yield Block(re.sub(r"^\[(?:[ xX]|![A-Z]+)\]\s*", "", line), heading)


# -- HTML ------------------------------------------------------------------------------------------------------------


class ProseParser(HTMLParser):
    """Collects the text between block elements."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks: list[Block] = []
        self._text: list[str] = []
        self._outside: list[str] = []  # open elements that hold no prose
        self._heading = False

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if NO_PROSE.fullmatch(tag):
            self._outside.append(tag)
        if BLOCKS.fullmatch(tag) or NO_PROSE.fullmatch(tag):
            self.end_block()
        self._heading = bool(re.fullmatch(r"h[1-6]", tag)) or self._heading

    def handle_endtag(self, tag: str) -> None:
        if BLOCKS.fullmatch(tag) or NO_PROSE.fullmatch(tag):
            self.end_block()
        if tag in self._outside:  # also ends those inside it that were left open
            del self._outside[self._outside.index(tag) :]

    def handle_data(self, data: str) -> None:
        if not self._outside:
            self._text.append(data)

    def end_block(self) -> None:
        """Make a block of the text collected so far."""
        if self._text:
            text = "".join(self._text).replace("¶", " ")
            self.blocks.append(Block(text, self._heading))
        self._text, self._heading = [], False


def html_blocks(text: str) -> Iterator[Block]:
    """The blocks of HTML, however broken. Code, tables, navigation, headers and footers are left out."""
    parser = ProseParser()
    parser.feed(text)
    parser.close()
    parser.end_block()
    yield from parser.blocks


# -- ReST ------------------------------------------------------------------------------------------------------------


def rest_blocks(text: str) -> Iterator[Block]:
    """The blocks of reStructuredText, without comments, literal blocks, doctests, tables, and directives but notes."""
    skip_deeper_than = -1  # the indentation of a directive or a paragraph that ends in "::", whose body is left out
    for lines in rest_paragraphs(text):
        indent = len(lines[0]) - len(lines[0].lstrip())
        if 0 <= skip_deeper_than < indent:
            continue
        skip_deeper_than = -1
        first = lines[0].strip()
        directive = re.match(r"\.\. ?(?:([\w:-]+)::\s*(.*))?", first)
        if directive:
            if not PROSE_DIRECTIVES.fullmatch(directive[1] or ""):
                skip_deeper_than = indent
                continue
            lines = [re.sub(r"^[\d.]+$", "", directive[2]), *lines[1:]]
        elif first.startswith((">>>", "|", "+--", "+==", "==", "__ ")) and not is_title(lines):
            continue
        if is_title(lines):
            title = next(line for line in lines if not UNDERLINE.match(line.strip()))
            yield Block(rest_inline(title), True)
            lines = lines[lines.index(title) + 2 :]
        prose = [line for line in lines if not re.match(r"\s*:[\w -]+:(\s|$)|\s*>>>", line)]
        for item in re.split(r"\n\s*(?:[-*+•]|\d+[.)]|#\.|\(\w\))\s+", "\n" + "\n".join(prose)):
            if item.strip():
                yield Block(rest_inline(item.strip().removesuffix("::")), False)
        if lines and lines[-1].rstrip().endswith("::"):
            skip_deeper_than = indent


def rest_paragraphs(text: str) -> Iterator[list[str]]:
    """Lines between blank ones."""
    for part in re.split(r"\n[ \t]*\n", text.expandtabs()):
        lines = [line.rstrip() for line in part.splitlines() if line.strip()]
        if lines:
            yield lines


def is_title(lines: list[str]) -> bool:
    """Whether a paragraph begins with a section's title: a line with an underline, and perhaps one above it too."""
    lines = lines[1:] if UNDERLINE.match(lines[0].strip()) else lines
    return len(lines) > 1 and not UNDERLINE.match(lines[0].strip()) and UNDERLINE.match(lines[1]) is not None


def rest_inline(text: str) -> str:
    """Text without roles, links, emphasis and marks of code."""
    text = re.sub(r":[\w:+.-]+:`([^`<]*?)\s*(?:<[^`>]*>)?`", r"\1", text)
    text = re.sub(r"`([^`<]+?)\s*<[^`>]*>`_{0,2}", r"\1", text)
    text = re.sub(r"``?([^`]+)``?_{0,2}", r"\1", text)
    text = re.sub(r"\|([^|\s][^|]*)\||\[[#\w]+\]_", r"\1", text)
    return re.sub(r"(?<!\w)\*{1,2}([^*\s](?:[^*]*[^*\s])?)\*{1,2}(?!\w)", r"\1", text)


# -- PDF -------------------------------------------------------------------------------------------------------------


def pdf_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a PDF's text with the number of their page, from 1; words cut by a hyphen at a line's end are whole.

    A blank line ends each page: sentences go on across pages, but so do headers and footers.

    Raises:
        InputError: pypdf is not installed, or it can't read the file.
    """
    try:
        from pypdf import PdfReader
        from pypdf.errors import PyPdfError
    except ModuleNotFoundError:
        what = "PDF needs pypdf; pip install 'shortstack-embeddings[documents]', or name only other files"
        raise InputError(f"{path}: {what}, as in '{path.parent}/**/*.md'") from None
    try:
        for number, page in enumerate(PdfReader(path).pages, start=1):
            text = re.sub(r"(?<=[a-z])-\n(?=[a-z])", "", page.extract_text())
            yield from ((number, line) for line in [*text.splitlines(), ""])
    except (PyPdfError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: can't be read as PDF ({first_line(error)})") from None
