"""The long text: what is read of each kind of package, what is left out, and that a break loses one source at most."""

import dataclasses
import gzip
import hashlib
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from archives import contents, make_tar, make_wheel

from shortstack.distillation import RunError
from shortstack.distillation.prepare import long, packages
from shortstack.distillation.prepare.packages import Package


def zstd(value: object) -> bytes:
    """JSON as the ontologies have it."""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(json.dumps(value).encode())
    return sink.getvalue().to_pybytes()


DISEASE = {
    "1": {
        "label": "gastritis",
        "description": "An inflammation of the wall of the stomach.",
        "synonyms": ["catarrh"],
    },
    "2": {"label": "colitis", "description": "An inflammation of the lining of the colon."},
    "3": {"label": "old", "description": "A term that is kept for old records only.", "deprecated": True},
}
OBO = """[Term]
name: binding
def: "The interaction of a molecule with sites of another one." [GOC:1]
synonym: "ligand" NARROW []
"""
MODULE = """DOCUMENTATION = r'''
short_description: Manages C(owl) boxes
description:
  - This module builds and removes the boxes in which B(owls) nest.
options:
  state:
    description: Whether the box should be there or should not be there.
  other: 3
'''
"""
DOCSTRING = '''"""Fits a tree.

The tree is split where its impurity falls most.

Parameters
----------
depth : int
    How many levels the tree may have.

Returns
-------
tree
"""'''
CWE = """<a xmlns="http://cwe.mitre.org/cwe-7"><Weakness Name="Improper Validation"><Description>The product does
not check its input well enough.</Description></Weakness></a>"""
AWS = {
    "metadata": {"serviceFullName": "Amazon Owl"},
    "documentation": "<p>Amazon Owl keeps owls for you.</p><p>See https://x.org for more of it.</p>",
    "operations": {"ListOwls": {"documentation": "<p>Lists the owls of your account.</p>"}},
    "shapes": {"Owl": {"members": {"name": {"documentation": "<p>The name of the owl that you own.</p>"}}}},
}
GOOGLE = {
    "title": "Owl API",
    "description": "Lets you manage the owls of a project.",
    "resources": {
        "owls": {"methods": {"list": {"id": "owl.owls.listAll", "description": "Lists all the owls of it."}}}
    },
    "schemas": {"Owl": {"properties": {"name": {"description": "The name that an owl has here."}}}},
}
SOURCE_FILES = {  # files by source, and what is read from them: texts and queries
    "ontologies-cells": (
        {f"{name}.json.zst": zstd(DISEASE if name.startswith("MONDO") else {}) for name in (
            "MONDO-ontology-v2026-05-05", "UBERON-ontology-v2026-04-01", "CL-ontology-v2026-03-26",
            "EFO-ontology-v3.90.0", "CHEBI-ontology-2026-05-01")},
        ["An inflammation of the wall of the stomach.", "An inflammation of the lining of the colon."],
        ["what is gastritis?", "what is catarrh?", "colitis"],
    ),
    "ontologies-genes": (
        {f"{name}.obo.gz": gzip.compress(("format-version: 1.2\n\n" + OBO * (name == "go")).encode())
         for name in ("go", "psi-ms", "psi-mod", "pato")},
        ["The interaction of a molecule with sites of another one."],
        ["what is binding?", "what is ligand?"],
    ),
    "databases": (
        {"re3data/processed.json": json.dumps({"1": {
            "name": "Owl archive", "description": "An archive of the songs of owls.", "keywords": ["Birds", "Sound"],
            "publications": [{"title": "An archive of songs"}]}}).encode()},
        ["An archive of the songs of owls."],
        ["Owl archive", "birds sound", "An archive of songs"],
    ),
    "security-clusters": (
        {"tool.json": json.dumps({"values": [{
            "value": "Owl RAT - S0001", "description": "[Owl](https://x.org) is a trojan. (Citation: Owl) It steals "
            "the passwords of its hosts."}]}).encode()},
        ["Owl is a trojan. It steals the passwords of its hosts."],
        ["Owl RAT"],
    ),
    "security-weaknesses": (
        {"cwec_v4.14.xml": CWE.encode()},
        ["The product does not check its input well enough."],
        ["Improper Validation"],
    ),
    "interfaces-aws": (
        {f"owl/{date}/service-2.json.gz": gzip.compress(json.dumps(AWS if date > "2020" else {}).encode())
         for date in ("2019-01-01", "2021-01-01")},
        ["Amazon Owl keeps owls for you.", "Lists the owls of your account.",
         "The name of the owl that you own."],
        ["Amazon Owl list owls"],
    ),
    "interfaces-google": (
        {"owl.v1.json": json.dumps(GOOGLE).encode(), "owl.v1beta.json": b"trial"},
        ["Lets you manage the owls of a project.", "Lists all the owls of it.", "The name that an owl has here."],
        ["Owl API", "owl owls list all"],
    ),
    "modules-ansible": (
        {"owl/plugins/modules/box.py": MODULE.encode(),
         "owl/plugins/modules/bad.py": b"DOCUMENTATION = \"\"\"a: b: c\"\"\""},
        ["This module builds and removes the boxes in which owls nest.",
         "Whether the box should be there or should not be there."],
        ["Manages owl boxes"],
    ),
    "prose-brown": (
        {"ca01": b"\n\tThe/at jury/nn said/vbd that/cs ``/`` it/pps is/bez late/jj ''/'' ,/, and/cc left/vbd ./.\n",
         "cats.txt": b"a/b"},
        ['The jury said that "it is late", and left.'],
        [],
    ),
}  # fmt: skip


@dataclasses.dataclass
class Registry:
    """Where the packages lie, in small, and what was asked for."""

    folder: Path
    asked: list[str]

    def path(self, package: Package) -> Path:
        name = package.requirement.replace("-", "_").replace("==", "-")
        return self.folder / (f"{name}.tgz" if "@" in name else f"{name}-py3-none-any.whl")

    def download(self, package: Package, directory: Path) -> Path:
        self.asked.append(package.requirement)
        if not self.path(package).exists():
            raise packages.Unreachable(f"{package.requirement}: not there")
        return Path(shutil.copy(self.path(package), directory))


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The packages of all sources, pinned as they are here."""
    registry = Registry(tmp_path / "packages", [])
    registry.folder.mkdir()
    pinned = {}
    for name, (read, package) in long.SOURCES.items():
        files = SOURCE_FILES.get(name, ({"tree.py": DOCSTRING.encode(), "tests/bad.py": b"", "bad.py": b"def"},))[0]
        path = registry.path(package)
        if path.suffix == ".tgz":
            path.write_bytes(make_tar(package.folder, files))
        else:
            make_wheel(path, package.folder, files)
        pinned[name] = read, dataclasses.replace(package, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(long, "SOURCES", pinned)
    monkeypatch.setattr(packages, "download", registry.download)
    monkeypatch.setattr(packages, "download_from_npm", registry.download)
    return registry


def test_long_text_of_every_source(tmp_path: Path, registry: Registry) -> None:
    long.prepare_long(tmp_path)
    for name, (_, texts, queries) in SOURCE_FILES.items():
        assert (tmp_path / "long" / f"{name}.txt").read_text().splitlines() == texts, name
        assert (tmp_path / "long" / "queries" / f"{name}.txt").read_text().splitlines() == queries, name
    for name in long.SOURCES.keys() - SOURCE_FILES.keys():
        assert (tmp_path / "long" / f"{name}.txt").read_text().splitlines() == [
            "The tree is split where its impurity falls most.",
            "How many levels the tree may have.",
        ]
        assert (tmp_path / "long" / "queries" / f"{name}.txt").read_text().splitlines() == ["Fits a tree"]
    notice = (tmp_path / "long" / "NOTICE.md").read_text()
    assert [name for name, (_, package) in long.SOURCES.items() if package.requirement not in notice] == []
    assert [name for name in long.SOURCES if f"`{name}.txt`" not in notice] == []


def test_long_text_goes_on_after_a_break(tmp_path: Path, registry: Registry) -> None:
    requirements = [package.requirement for _, package in long.SOURCES.values()]
    package = registry.folder / "cwe2-3.0.0-py3-none-any.whl"
    package.rename(tmp_path / "away")
    with pytest.raises(RunError, match="cwe2==3.0.0"):
        long.prepare_long(tmp_path)
    (tmp_path / "away").rename(package)
    registry.asked.clear()
    long.prepare_long(tmp_path)
    assert registry.asked == requirements[requirements.index("cwe2==3.0.0") :]
    before = contents(tmp_path / "long")
    (tmp_path / "long" / "queries" / "databases.txt").write_text("edited")
    registry.asked.clear()
    long.prepare_long(tmp_path)
    assert registry.asked == ["bioregistry==0.15.6"] and contents(tmp_path / "long") == before


def test_no_judged_text_in_the_long_text(tmp_path: Path, registry: Registry) -> None:
    judged_set = tmp_path / "retrieval" / "a"
    judged_set.mkdir(parents=True)
    # Ten words in a row of a longer document; a short query as a whole.
    (judged_set / "documents.txt").write_text("Or: whether the box should be there, or should not be there; see it.\n")
    (judged_set / "queries.txt").write_text("Colitis\n")
    long.prepare_long(tmp_path)
    modules = (tmp_path / "long" / "modules-ansible.txt").read_text()
    assert modules == "This module builds and removes the boxes in which owls nest.\n"
    assert (
        tmp_path / "long" / "queries" / "ontologies-cells.txt"
    ).read_text() == "what is gastritis?\nwhat is catarrh?\n"


def test_a_source_gives_no_more_than_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long, "MOST_TEXTS", 2)
    monkeypatch.setattr(long, "MOST_QUERIES", 3)
    extracted = [(f"The owl number {word} sits in the old wood.", False) for word in ("one", "two", "three", "four")]
    extracted += [(f"owl {word}", True) for word in ("one", "two", "three")]
    texts, queries = long.clean_source(iter(extracted + extracted), set())
    assert [text.split()[3] for text in texts] == ["one", "three"] and queries == ["owl one", "owl two", "owl three"]


@pytest.mark.parametrize(
    "sentence, kept",
    [
        ("A disease of the liver that is caused by a virus.", True),
        ("Call model.fit(x) to train it.", False),
        ("Ontologie des classes et propriétés utilisées pour la démographie nationale.", False),
        ("See https://x.org for the whole list.", False),
        ("Values are 3 4 5 6 7 8 9 10 11.", False),
        ("Too short.", False),
    ],
)
def test_what_reads_well(sentence: str, kept: bool) -> None:
    assert long.reads_well(sentence) == kept
