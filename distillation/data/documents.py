"""Documents as a reader sees them: the headings and paragraphs of Markdown, ReST and HTML, without markup and code.

PDF has no headings that a program can tell: it gives lines of text.
"""

import itertools
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
# What dialects of Markdown add to it. Python-Markdown's notes and tabs have their text indented below them.
INDENTED = re.compile(r'( *)(?:(?:!!!|\?\?\?\+?) ?\w+(?: [\w-]+){0,3} ?|===[!+]* *(?="))(?:"(.*)")?\s*$')
# Lines of their own: containers, labels, comments of MyST, included files, tables of contents, MDX's imports.
OWN_LINES = re.compile(
    r"\s*(?::::|///|-+8<-|\([\w.-]+\)=\s*$|%\s|\[\[?_?toc_?\]\]?\s*$|import\s.+['\"];?\s*$|export\s(const|default|function)\s)",
    re.IGNORECASE,
)
# Within text: attributes, tags of templates, comments of MDX, footnotes, icons, the names of MyST's roles.
IN_TEXT = re.compile(
    r"\s*\{[:#.][^{}]*\}|\{%.*?%\}|\{\{[<%].*?[>%]\}\}|\{/\*.*?\*/\}|\[\^[\w-]+\]|(?<!\S):[a-z][\w+-]*:(?!\S)"
    r"|\{[a-z][\w:+-]*\}$"
)
# HTML elements that end a paragraph, and those that hold no prose.
BLOCKS = re.compile("p|div|li|dd|dt|h[1-6]|section|article|blockquote|br|hr|ul|ol|dl|body|figcaption")
NO_PROSE = re.compile("pre|script|style|nav|header|footer|table|title|svg|math|form|button|select|template|noscript")
# Marked sections of SGML but those that HTMLParser knows: it raises AssertionError, browsers take them for comments.
UNKNOWN_SECTION = re.compile(r"<!\[(?!(?:cdata|if|else|endif)(?![-_.a-z0-9]))", re.IGNORECASE | re.ASCII)
# ReST directives whose body is prose.
PROSE_DIRECTIVES = re.compile(
    "note|warning|tip|important|caution|attention|hint|danger|seealso|admonition|topic|version(added|changed|removed)|deprecated"
)
REST_CODE = re.compile(r"(?<!`)``(?!`)(.+?)``", re.DOTALL)
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
    for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse("\n".join(common_lines(text))):
        tables += token.nesting if token.type.startswith("table") else 0
        if token.type in ("heading_open", "paragraph_open"):
            heading = token.type == "heading_open"
        elif token.type == "inline" and not tables:
            line = "".join(prose_of(child.type, child.content) for child in token.children or [])
            if not re.match(r"\[![A-Z]+\]\s*$|\[\^|\*\[", token.content):  # a note's mark, a footnote, an abbreviation
                yield Block(re.sub(r"^\[(?:[ xX]|![A-Z]+)\]\s*|^: +", "", line), heading)


def common_lines(text: str) -> Iterator[str]:
    """Lines of Markdown without what only some dialects have; the text of notes and tabs as paragraphs of their own."""
    fence, notes = "", [-1]  # the open fence of code; the indentations of open notes
    for line in text.expandtabs(4).splitlines():
        indent = len(line) - len(line.lstrip())
        while line.strip() and indent <= notes[-1]:
            notes.pop()
        line = line[min(indent, 4 * (len(notes) - 1)) :] if line.strip() else ""
        mark = re.match(r"\s*(`{3,}|~{3,})", line)
        if mark and (not fence or (mark[1].startswith(fence) and line.strip() == mark[1])):
            fence = "" if fence else mark[1]
        note = None if fence else INDENTED.match(line)
        if note:
            notes.append(indent)
            yield from ("", note[1] + (note[2] or ""), "")
        else:
            yield "" if not fence and OWN_LINES.match(line) else line


def prose_of(kind: str, content: str) -> str:
    """What a reader sees of a part of a Markdown paragraph."""
    if kind == "text":
        return re.sub(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]+)\]\]", r"\1", IN_TEXT.sub("", content))
    return content if kind == "code_inline" else " " * kind.endswith("break")


# -- HTML ------------------------------------------------------------------------------------------------------------


class ProseParser(HTMLParser):
    """Collects the text between block elements."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks: list[Block] = []
        self._text: list[str] = []
        self._outside: list[str] = []  # open elements that hold no prose
        self._heading = False
        self._link = 0  # where the text of the last link begins
        self._links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if NO_PROSE.fullmatch(tag) or tag in self._outside or ("role", "navigation") in attrs:
            self._outside.append(tag)
        if BLOCKS.fullmatch(tag) or NO_PROSE.fullmatch(tag):
            self.end_block()
        self._heading = bool(re.fullmatch(r"h[1-6]", tag)) or self._heading
        self._link = len(self._text)

    def handle_endtag(self, tag: str) -> None:
        if BLOCKS.fullmatch(tag) or NO_PROSE.fullmatch(tag):
            self.end_block()
        if tag in self._outside:  # also ends those inside it that were left open
            del self._outside[len(self._outside) - 1 - self._outside[::-1].index(tag) :]
        if tag == "a":
            link = "".join(self._text[self._link :])
            if re.search(r"\w", link):
                self._links.append(link)
            else:  # a mark such as # or ¶, for the address of a heading
                del self._text[self._link :]

    def handle_data(self, data: str) -> None:
        if not self._outside:
            self._text.append(data)

    def end_block(self) -> None:
        """Make a block of the text collected so far, unless it is navigation: several links and little else."""
        text = "".join(self._text)
        all_letters, linked = (len(re.sub(r"\W", "", part)) for part in (text, "".join(self._links)))
        if text and (len(self._links) < 3 or linked < all_letters / 2):
            self.blocks.append(Block(text, self._heading))
        self._text, self._links, self._link, self._heading = [], [], 0, False


def html_blocks(text: str) -> Iterator[Block]:
    """The blocks of HTML, however broken. Code, tables, navigation, headers, footers and templates are left out."""
    if text.lstrip().startswith(("{%", "{{", "{#")):
        return
    parser = ProseParser()
    parser.feed(UNKNOWN_SECTION.sub("<! [", text))
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
    """Lines between blank ones; a directive or a comment begins anew."""
    for part in re.split(r"\n[ \t]*\n|\n(?= *\.\. )", text.expandtabs()):
        lines = [line.rstrip() for line in part.splitlines() if line.strip()]
        if lines:
            yield lines


def is_title(lines: list[str]) -> bool:
    """Whether a paragraph begins with a section's title: a line with an underline, and perhaps one above it too."""
    lines = lines[1:] if UNDERLINE.match(lines[0].strip()) else lines
    return len(lines) > 1 and not UNDERLINE.match(lines[0].strip()) and UNDERLINE.match(lines[1]) is not None


def rest_inline(text: str) -> str:
    """Text without roles, links, emphasis and marks of code; code itself stays as it is."""
    code = [found[1] for found in re.finditer(REST_CODE, text)]
    numbers = itertools.count()
    text = rest_marks(re.sub(REST_CODE, lambda _: f"\0{next(numbers)}\0", text))
    return re.sub("\0(\\d+)\0", lambda place: code[int(place[1])], text)


def rest_marks(text: str) -> str:
    """The same for text without code."""
    text = re.sub(r"(?:(?::[\w+.-]+)+:)?`([^`]+)`_{0,2}", lambda found: rest_shown(found[1]), text)
    text = re.sub(r"\|([^|\s][^|]*)\|_{0,2}|\s*\[[#*\w.-]+\]_(?!\w)", r"\1", text)
    text = re.sub(r"(?<![\w.`])([A-Za-z0-9](?:[\w.+-]*[A-Za-z0-9])?)__?(?![\w(])", r"\1", text)
    text = re.sub(r"(?<![\w*])\*{1,2}([^*\s](?:[^*]*[^*\s])?)\*{1,2}(?![\w*])", r"\1", text)
    return re.sub(r"\\(\s|(?=\W))", "", text)


def rest_shown(text: str) -> str:
    """What a reader sees of a role or a link: its title, or of ~a.b.c the c."""
    titled = re.fullmatch(r"(.+?)\s*<[^>]*>", text, flags=re.DOTALL)
    if titled:
        return titled[1]
    return text.rpartition(".")[2] if text.startswith("~") else text.removeprefix("!")


# -- PDF -------------------------------------------------------------------------------------------------------------


def pdf_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a PDF's text with the number of their page, from 1; words cut by a hyphen at a line's end are whole.

    A blank line ends each page: sentences go on across pages, but so do headers and footers.

    Raises:
        InputError: pypdf is not installed, or it can't read the file.
    """
    try:
        from pypdf import PdfReader
    except ModuleNotFoundError:
        what = "PDF needs pypdf; pip install pypdf, or name only other files"
        raise InputError(f"{path}: {what}, as in '{path.parent}/**/*.md'") from None
    try:
        for number, page in enumerate(PdfReader(path).pages, start=1):
            text = re.sub(r"(?<=[a-z])-\n(?=[a-z])", "", page.extract_text())
            yield from ((number, line) for line in [*text.splitlines(), ""])
    except (OSError, MemoryError):  # no fault of the file's
        raise
    except Exception as error:  # pypdf raises too many kinds to name, also for ciphers that it has no package for
        raise InputError(f"{path}: can't be read as PDF ({first_line(error)})") from None
