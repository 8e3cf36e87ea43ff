"""What the packages of the long text hold, one function for each kind: texts, and query-like lines beside them.

Each function reads an archive and gives (text, is_query) pairs, uncleaned: `long.py` cleans, cuts and counts.
"""

import gzip
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from shortstack.distillation.prepare.formats import (
    clean_rst,
    docstrings,
    obo_terms,
    one_line,
    quoted,
    split_docstring,
)
from shortstack.distillation.prepare.packages import read_member, read_members

Extract = Iterator[tuple[str, bool]]  # a text, and whether it is like a query
QUESTION_EVERY = 4  # one term in so many is asked for: "what is gastritis?"


def terms(names: list[str], definition: str, number: int) -> Extract:
    """A definition as text; the names that it defines as queries, of some terms as a question."""
    if definition:
        yield one_line(definition), False
    for name in names:
        yield (f"what is {name}?" if number % QUESTION_EVERY == 0 else name), True


def cell_ontologies(archive: Path, folder: str) -> Extract:
    """Diseases, anatomy, cells and experimental factors, and every fourth of the chemicals."""
    for name in ("MONDO-ontology-v2026-05-05", "UBERON-ontology-v2026-04-01", "CL-ontology-v2026-03-26",
                 "EFO-ontology-v3.90.0", "CHEBI-ontology-2026-05-01"):  # fmt: skip
        packed = read_member(archive, f"{folder}{name}.json.zst")
        ontology = json.loads(pa.CompressedInputStream(pa.BufferReader(packed), "zstd").read())
        defined = [term for term in ontology.values() if term.get("description") and not term.get("deprecated")]
        for number, term in enumerate(defined[:: 4 if name.startswith("CHEBI") else 1]):
            yield from terms([term["label"], *term.get("synonyms", [])[:1]], term["description"], number)


def gene_ontologies(archive: Path, folder: str) -> Extract:
    """Functions of genes, every second; terms of mass spectrometry, protein changes and qualities."""
    for name in ("go", "psi-ms", "psi-mod", "pato"):
        ontology = gzip.decompress(read_member(archive, f"{folder}{name}.obo.gz")).decode()
        for number, term in enumerate(list(obo_terms(ontology))[:: 2 if name == "go" else 1]):
            names = [*term.get("name", []), *map(quoted, term.get("synonym", [])[:1])]
            yield from terms(names, quoted(term.get("def", [""])[0]), number)


def databases(archive: Path, folder: str) -> Extract:
    """What scientific databases hold, their names and keywords, and titles of articles about them."""
    for name in ("fairsharing", "re3data", "bartoc", "integbio", "prefixcommons", "bioportal", "aberowl", "lov"):
        for _, content in read_members(archive, f"{folder}{name}/", ".json"):
            value = json.loads(content)
            for record in value.values() if isinstance(value, dict) else value:
                if isinstance(record, dict):
                    yield one_line(str(record.get("description") or "")), False
                    yield str(record.get("name") or ""), True
                    yield " ".join(map(str, record.get("keywords") or [])).lower(), True
                    for publication in record.get("publications") or []:
                        yield str(publication.get("title") or ""), True


def security_clusters(archive: Path, folder: str) -> Extract:
    """Attacks, malware, threat actors, detection rules and the skills against them."""
    for name, content in read_members(archive, folder, ".json"):
        if name.endswith(("ukhsa-culture-collections.json", "firearms.json")):  # thousands of names
            continue
        for cluster in json.loads(content)["values"]:
            text = re.sub(r"\[([^\]]*)\]\([^)]*\)|\(Citation:[^)]*\)", r"\1", cluster.get("description") or "")
            yield text, False
            yield re.sub(r" - [A-Z-]*\d[\d.]*$", "", cluster["value"]), True


def weaknesses(archive: Path, folder: str) -> Extract:
    """MITRE's list of weaknesses of software and hardware: names, and every paragraph about them."""
    root = ElementTree.fromstring(read_member(archive, f"{folder}cwec_v4.14.xml"))
    for element in root.iter():
        tag = element.tag.rpartition("}")[2]
        if tag in ("Weakness", "Category", "View"):
            yield element.get("Name") or "", True
        elif tag in ("Description", "Extended_Description", "Note", "Summary", "Body_Text", "Background_Detail"):
            yield one_line(" ".join(element.itertext())), False


def aws_interfaces(archive: Path, folder: str) -> Extract:
    """The documentation of each AWS service in its newest version: operations, and every second parameter."""
    newest = {name.split("/")[2]: content for name, content in read_members(archive, folder, "/service-2.json.gz")}
    for content in newest.values():
        service = json.loads(gzip.decompress(content))
        about = service["metadata"].get("serviceFullName", "")
        yield service.get("documentation", ""), False
        for name, operation in service["operations"].items():
            yield operation.get("documentation", ""), False
            yield f"{about} {words_of(name)}", True
        shapes = service["shapes"].values()
        members = [member for shape in shapes for member in [shape, *(shape.get("members") or {}).values()]]
        for member in [member for member in members if member.get("documentation")][::2]:
            yield member["documentation"], False


def google_interfaces(archive: Path, folder: str) -> Extract:
    """The descriptions in Google's interfaces, those of trial versions left out: methods and every second field."""
    for name, content in read_members(archive, folder, ".json"):
        if re.search(r"\.v\d+\.json$", name):
            value = json.loads(content)
            yield value.get("title", ""), True
            yield value.get("description", ""), False
            for method in methods_of(value):
                yield method.get("description", ""), False
                yield words_of(method.get("id", "").replace(".", " ")), True
            for text in list(descriptions_of(value.get("schemas", {})))[::2]:
                yield text, False


def methods_of(value: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The methods of an interface and of the resources in it."""
    yield from value.get("methods", {}).values()
    for resource in value.get("resources", {}).values():
        yield from methods_of(resource)


def descriptions_of(value: Any) -> Iterator[str]:
    """Every description in a JSON value."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else []):
        if key == "description" and isinstance(inner, str):
            yield inner
        else:
            yield from descriptions_of(inner)


def words_of(name: str) -> str:
    """The words of a name in camel case: "DescribeInstances" to "describe instances"."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).lower()


def ansible_modules(archive: Path, folder: str) -> Extract:
    """What modules that set up machines do, in one line and in full, and every third option."""
    for name, content in read_members(archive, folder, ".py"):
        documentation = re.search(r'^DOCUMENTATION = r?("""|\'\'\')(.*?)\1', content.decode(), re.MULTILINE | re.DOTALL)
        if "/plugins/modules/" not in name or not documentation or "/fortinet/" in name:  # these repeat one text
            continue
        try:
            value = yaml.load(documentation[2], Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except yaml.YAMLError:
            continue
        if isinstance(value, dict):
            yield without_ansible_marks(str(value.get("short_description") or "")), True
            yield without_ansible_marks(value.get("description") or ""), False
            options = list((value.get("options") or {}).values())[::3]
            for option in options:
                if isinstance(option, dict):
                    yield without_ansible_marks(option.get("description") or ""), False


def without_ansible_marks(text: Any) -> str:
    """A description, whole or in a list of paragraphs, without the marks of code, links and emphasis."""
    text = "\n\n".join(map(str, text)) if isinstance(text, list) else str(text)
    return re.sub(r"\b[A-Z]\(([^()]*?)(?:,[^()]*)?\)", r"\1", text)


def python_docs(archive: Path, folder: str) -> Extract:
    """Docstrings: the first line as a query; the running text, and the description of every parameter, as texts."""
    for name, source in read_members(archive, folder, ".py"):
        if "/tests/" not in name:
            try:
                texts = list(docstrings(source.decode()))
            except (SyntaxError, UnicodeDecodeError):
                continue
            for docstring in texts:
                summary, text = split_docstring(docstring)
                yield summary.rstrip("."), True
                yield text, False
                parameters = re.search(
                    r"^Parameters\n-+\n(.*?)(?=^\w[\w ]*\n-{3,}|\Z)", docstring, re.MULTILINE | re.DOTALL
                )
                if parameters:
                    yield "\n\n".join(map(clean_rst, re.split(r"^\S.*$", parameters[1], flags=re.MULTILINE))), False


def brown_corpus(archive: Path, folder: str) -> Extract:
    """American prose of 1961, press, essays, science and fiction: the words of "The/at Jury/nn said/vbd"."""
    for name, content in read_members(archive, folder, ""):
        if re.fullmatch(r"c[a-r]\d\d", Path(name).name):
            for paragraph in re.split(r"\n\s*\n\s*\n", content.decode("latin-1")):
                words = [word.rpartition("/")[0] for word in paragraph.split() if "/" in word]
                text = re.sub(r" ([.,;:?!')]+)(?= |$)", r"\1", " ".join(words)).replace("`` ", '"').replace("''", '"')
                yield text.replace("( ", "("), False
