"""Text out of the formats that packages hold: ontologies, Markdown, docstrings, reStructuredText, HTML."""

import ast
import html
import re
from collections.abc import Iterable, Iterator

from shortstack.distillation.data.passages import paragraphs_of


def one_line(text: str) -> str:
    """A text without line breaks and repeated spaces."""
    return " ".join(text.split())


def obo_terms(text: str) -> Iterator[dict[str, list[str]]]:
    """The terms of an ontology in OBO's format, those that are obsolete left out: lists of values by tag."""
    for stanza in text.split("\n[")[1:]:
        kind, _, body = stanza.partition("]\n")
        term: dict[str, list[str]] = {}
        for line in body.splitlines():
            tag, _, value = line.partition(": ")
            term.setdefault(tag, []).append(value)
        if kind == "Term" and "is_obsolete" not in term:
            yield term


def quoted(value: str) -> str:
    r"""The text between the first pair of quotation marks, \" being one within it: '"a \"b\"" [X]' to 'a "b"'."""
    match = re.match(r'"((?:[^"\\]|\\.)*)"', value)
    return re.sub(r"\\(.)", r"\1", match[1]) if match else ""


def without_code(page: str) -> str:
    """A page without its blocks of code, in which a comment would look like a heading."""
    return re.sub(r"^ *(```+|~~~+).*?^ *\1", "", page, flags=re.MULTILINE | re.DOTALL)


def reads_as_text(line: str) -> bool:
    """Whether a line is running text: some words, mostly letters, and an end such as a sentence's."""
    letters = sum(character.isalpha() or character == " " for character in line)
    return len(line.split()) >= 4 and letters >= 0.8 * len(line) and line.endswith((".", ":", "!", "?"))


def markdown_lines(lines: Iterable[str]) -> Iterator[str]:
    """The lines that a reader sees as prose: no code, tables or markup; headings and list items stand alone.

    documents.py reads Markdown better. The judged set of manuals was made with this, and figures are known for it.
    """
    fence = ""
    for number, line in enumerate(lines):
        stripped = line.strip()
        if number == 0 and stripped == "---":
            fence = "---"  # front matter
        elif fence:
            fence = "" if stripped.startswith(fence) else fence
        elif match := re.match(r"(```+|~~~+)", stripped):
            fence = match[1]
            yield ""
        elif stripped.startswith(("|", "<!--", "[!")) or re.fullmatch(r"[-=*_ ]{3,}|\[[^\]]+\]:.*", stripped):
            yield ""
        else:
            heading_or_item = re.match(r"(#+ |[-*+] |\d+[.)] )", stripped)
            if heading_or_item:
                yield ""
            yield without_markup(stripped)
            if stripped.startswith("#"):
                yield ""


def without_markup(line: str) -> str:
    """A line of Markdown without marks of headings, items, quotations, links, images, emphasis and code."""
    line = re.sub(r"^(?:>\s*)*(?:#+ |[-*+] (?:\[[ xX]\] )?|\d+[.)] )?", "", line)
    line = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", line)
    line = re.sub(r"\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])", r"\1", line)
    line = re.sub(r"</?[a-zA-Z][^<>]*>", "", line)
    return re.sub(r"\*\*|__|`|(?<!\w)[*_](?=\S)|(?<=\S)[*_](?!\w)", "", line)


def docstrings(source: str) -> Iterator[str]:
    """The docstrings of modules, classes and functions of a Python file, read without running it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text


def split_docstring(docstring: str) -> tuple[str, str]:
    """A docstring's summary, and the running text before its parameters and in its notes."""
    summary, _, rest = docstring.partition("\n\n")
    parts = re.split(r"^(\w[\w ]*)\n-{3,}\n", rest, flags=re.MULTILINE)
    texts = [parts[0], *(text for heading, text in zip(parts[1::2], parts[2::2], strict=True) if heading == "Notes")]
    lines = [clean_rst(line) for text in texts for line in paragraphs_of(text.splitlines())]
    return clean_rst(one_line(summary)), " ".join(line for line in lines if reads_as_text(line))


def clean_rst(line: str) -> str:
    """A line of reStructuredText without roles, quotation marks of code and marks of references."""
    line = re.sub(r":[\w:]+:`~?([^`<]*)(?:<[^`]*>)?`", r"\1", line)
    line = re.sub(r"`([^`<]*?)\s*<[^`]*>`_+", r"\1", line)
    return one_line(re.sub(r"`+|\[\d+\]_|\*\*", "", line))


def clean_html(text: str) -> str:
    """A text without the tags and the commonest entities of HTML; what was a paragraph stays one."""
    text = re.sub(r"</(?:p|li|h\d|note|important|dd|dt|div)>|<br */?>", "\n\n", text)
    return html.unescape(re.sub(r"</?[a-zA-Z][^<>]*>", "", text))
