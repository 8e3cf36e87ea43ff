"""Passages: paragraphs of text and Markdown, whole or cut at sentence ends within what a model reads."""

import itertools
import os
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_pdf import PdfPages
from tiny import put

from shortstack.distillation.data.corpus import Draw, build_corpus, open_corpus
from shortstack.distillation.data.passages import ESTIMATE, Cutter, cutter_of, paragraphs_of
from shortstack.distillation.data.sentences import read_sentences
from shortstack.distillation.data.sources import Marks, split_marks, what_is_read, with_reading
from shortstack.distillation.ranks import ALONE
from shortstack.distillation.recipe import Recipe
from shortstack.model import Embedder
from shortstack.model.files import InputError

MARKDOWN = """---
title: front matter
---
# The *first* heading
Some `code` and a [link](https://example.org) in a paragraph
that goes on in the next line.

- an item with **weight**
- another item

```python
not_prose = True
```

| a | table |
|---|---|

> A quotation ends here.
![a picture](x.png)
"""


def test_markdown_is_read_as_its_prose(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(MARKDOWN)
    assert list(read_sentences(str(tmp_path / "*.md"))) == [
        "The first heading",
        "Some code and a link in a paragraph that goes on in the next line.",
        "an item with weight",
        "A quotation ends here.",
    ]


REST = """
=====
Title of all
=====

A paragraph with ``code``, :ref:`a link <x>` and *emphasis*
that goes on. **Example**::

    not_prose = True

    more_code()

.. note:: This note is prose
   that continues.

.. code-block:: python
   :linenos:

   x = 1

- first item of it
- second item is here

>>> f(1)
2

=====  =====
a      b
=====  =====

.. _label:

See `the docs <http://example.org>`_ for more.
"""
HTML = """<html><head><title>not this</title></head><body><nav>nor <a href="x">this</a></nav><h1>A heading <em>here</em>
</h1><p>Text &amp; <code>code</code>
goes on.<pre>not_prose()</pre><ul><li>an item here<li>one</ul><table><tr><td>a cell of a table</table></body>"""


def test_a_directory_of_documents_is_read_as_its_prose(tmp_path: Path) -> None:
    """Without hidden files and what is no text, and without going round a loop of links."""
    docs = tmp_path / "docs"
    (docs / ".git").mkdir(parents=True)
    (docs / "a.rst").write_text(REST)
    (docs / "b.html").write_text(HTML)
    (docs / "c.md").write_text(
        "<!-- a comment\n\nof lines -->\n# One\n\nThe only text.\n\n    indented_code()\n\na | b\n--|--\n1 | 2\n"
    )
    (docs / "d.png").write_bytes(b"\x89PNG")
    (docs / ".git" / "e.md").write_text("Not to be read.")
    (docs / "loop").symlink_to(docs, target_is_directory=True)
    assert list(read_sentences(str(docs))) == [
        "Title of all",
        "A paragraph with code, a link and emphasis that goes on. Example",
        "This note is prose that continues.",
        "first item of it",
        "second item is here",
        "See the docs for more.",
        "A heading here",
        "Text & code goes on.",
        "an item here",
        "The only text.",
    ]
    said = what_is_read(f"document@{docs}")
    assert said == f"{docs}: 3 files read (1 .rst, 1 .html, 1 .md); left out: 1 .png"
    (docs / "package.json").write_text("{}")
    (docs / "f.csv").write_text("text\nA table among documents.\n")
    assert what_is_read(str(docs)).endswith("3 files read (1 .rst, 1 .html, 1 .md); left out: 1 .png, 1 .csv, 1 .json")
    (docs / "dataset_info.json").write_text("{}")
    assert what_is_read(str(docs)) == ""
    tables = tmp_path / "tables"
    tables.mkdir()
    (tables / "f.csv").write_text("text\nOnly in a table.\n")
    (tables / "README.md").write_text("What the table is.")
    assert what_is_read(str(tables)) == "" and list(read_sentences(str(tables))) == ["Only in a table."]


@pytest.mark.parametrize(
    ("names", "read"),
    [
        (["a.pdf", "b.pdf", "prices.csv"], "2 files read (2 .pdf); left out: 1 .csv"),
        (["a.txt", "b.txt", "package.json"], "2 files read (2 .txt); left out: 1 .json"),
        (["data/train.parquet", "README.md", "LICENSE.txt"], ""),
        (["train.jsonl", "LICENSE", "readme.txt"], ""),
        (["train.csv", "LICENSE.md"], ""),
        (["README.md", "package.json"], "1 files read (1 .md); left out: 1 .json"),
    ],
)
def test_tables_are_a_dataset_where_there_is_nothing_else_to_read(tmp_path: Path, names: list[str], read: str) -> None:
    for name in names:
        put(tmp_path / name, "")
    assert what_is_read(str(tmp_path)) == (f"{tmp_path}: {read}" if read else "")


def test_names_of_what_is_left_out_need_not_be_utf8(tmp_path: Path) -> None:
    put(tmp_path / "a.md", "")
    try:
        put(tmp_path / os.fsdecode(b"b.\xe9"), "")
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    assert what_is_read(str(tmp_path)).endswith("left out: 1 .?")


def test_sphinx_sources_are_read_where_they_are_named(tmp_path: Path) -> None:
    put(tmp_path / "_sources" / "a.rst", "The text of a page.")
    put(tmp_path / "a.html", "<p>The page.")
    assert what_is_read(str(tmp_path)).endswith("1 files read (1 .html); left out: 1 .rst")
    assert list(read_sentences(str(tmp_path / "_sources"))) == ["The text of a page."]


def test_a_mistyped_document_is_no_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("docs/x.md", "docs/x.rst", "docs/x.html"):
        with pytest.raises(InputError, match=f"{name}: no such file"):
            list(read_sentences(name))


def test_plain_text_is_streamed() -> None:
    paragraphs = paragraphs_of(itertools.cycle(["a line", ""]))
    assert next(paragraphs) == "a line"  # of text without end


def test_plain_text_is_lines_unless_it_is_to_be_passages(tmp_path: Path) -> None:
    long = "A line that is long stands for a whole paragraph. " * 4
    (tmp_path / "a.txt").write_text(f"wrapped\nlines\n\n  \nalone\n{long}\n{long}after\n")
    assert len(list(read_sentences(str(tmp_path / "a.txt")))) == 5
    found = list(read_sentences(f"passages@{tmp_path / 'a.txt'}"))
    assert found == ["wrapped lines", "alone", long.strip(), long + "after"]


def test_cells_of_a_table_are_cut_too(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one\\n\\ntwo words"}\n{"text": "three"}\n')
    assert list(read_sentences(f"passages@{tmp_path / 'a.jsonl'}:text")) == ["one", "two words", "three"]


@pytest.mark.parametrize(("limit", "lengths"), [(44, [44, 44, 22]), (100, [55, 55])])
def test_a_long_paragraph_is_cut_at_sentence_ends_into_equal_parts(limit: int, lengths: list[int]) -> None:
    sentences = [f"Number {number} of Dr. Smith's sentences has eleven words in all." for number in range(10)]
    cutter = Cutter(limit=limit, count=lambda texts: [len(text.split()) for text in texts])
    found = list(cutter.cut([" ".join(sentences)]))
    assert [len(text.split()) for text in found] == lengths
    assert " ".join(found) == " ".join(sentences)
    assert list(cutter.cut(["short"])) == ["short"]


@given(st.lists(st.text("ab. 。C", max_size=300), max_size=3), st.integers(1, 30))
def test_no_passage_is_beyond_the_limit_and_no_letter_is_lost(paragraphs: list[str], limit: int) -> None:
    cutter = Cutter(limit=limit, count=lambda texts: [len(text) for text in texts])
    found = list(cutter.cut(paragraphs))
    # The spaces that join sentences are no tokens; here each is one character more.
    assert all(len(text.replace(" ", "")) <= limit for text in found if len(text) > 1)
    assert "".join("".join(found).split()) == "".join("".join(paragraphs).split())


def test_passages_of_a_model_are_read_to_their_end(tiny_cls_dir: Path, tmp_path: Path) -> None:
    embedder = Embedder.load(tiny_cls_dir, "cpu", "fp32", max_length=40)
    (tmp_path / "a.txt").write_text("The dog sees the cat and the horse. " * 60)
    texts = list(read_sentences(f"passages@{tmp_path / 'a.txt'}", cutter_of(embedder)))
    lengths = [len(tokens) for tokens in embedder.tokenize(texts, embedder.role_prompt("query"))]
    assert len(texts) > 5 and 20 < max(lengths) < 40


@pytest.mark.parametrize(
    ("source", "marks", "rest"),
    [
        ("a.txt", Marks(), "a.txt"),
        ("query@a.txt", Marks("query"), "a.txt"),
        ("document,passages,200@a.md:b", Marks("document", "passages", 200), "a.md:b"),
        ("7@owner/name::train", Marks(limit=7), "owner/name::train"),
        ("someone@example.txt", Marks(), "someone@example.txt"),
    ],
)
def test_marks(source: str, marks: Marks, rest: str) -> None:
    assert split_marks(source) == (marks, rest)


def test_marks_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="two marks of one kind"):
        split_marks("query,document@a.txt")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "query@a.txt").write_text("a file of this very name\n")
    assert split_marks("query@a.txt") == (Marks(), "query@a.txt")
    assert with_reading("5@b.txt", "passages") == "passages,5@b.txt"
    assert with_reading("b.txt", "passages") == "passages@b.txt" and with_reading("lines@b", "passages") == "lines@b"


def test_a_corpus_keeps_roles_and_limits(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"both {number}\n" for number in range(50)))
    (tmp_path / "b.txt").write_text("".join(f"plain {number}\n" for number in range(50)))
    a, b = tmp_path / "a.txt", tmp_path / "b.txt"
    corpus = build_corpus(tmp_path / "corpus", [f"query@{a}", f"document,20@{a}", f"30@{b}"], Draw(None, 10, 7))
    training, evaluation = corpus.training(0, len(corpus)), corpus.evaluation()
    texts, roles = training.sentences + evaluation.sentences, training.roles + evaluation.roles
    assert len(texts) == len(roles) == 100 and len(set(zip(texts, roles, strict=True))) == 100
    for role, count in (("query", 50), ("document", 20), ("", 30)):
        assert roles.count(role) == count
    assert all((role == "") == text.startswith("plain") for text, role in zip(texts, roles, strict=True))
    other = build_corpus(tmp_path / "other", [f"document@{a}"], Draw(None, 10, 7))
    same = build_corpus(tmp_path / "same", [f"query@{a}"], Draw(None, 10, 7))
    assert other.evaluation().sentences and other.fingerprint != same.fingerprint


def test_another_cutter_makes_another_corpus(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(f"Number {row} is here. Number {row} is there." for row in range(20)))
    narrow = Cutter(limit=5, name="narrow")
    recipe = Recipe(sentences=[f"passages@{tmp_path / 'a.txt'}"], evaluation_sentences=1, output=str(tmp_path))
    wide, cut = (open_corpus(recipe, cutter, ALONE) for cutter in (ESTIMATE, narrow))
    assert wide.fingerprint != cut.fingerprint and wide.path != cut.path  # both stay on disk
    assert list(paragraphs_of(["..", "", "a"])) == ["a"]


def write_pdf(path: Path, pages: list[str]) -> None:
    with plt.rc_context({"pdf.use14corefonts": True}), PdfPages(path) as file:
        for text in pages:
            figure = plt.figure()
            figure.text(0.1, 0.5, text)
            file.savefig(figure)
            plt.close(figure)


def test_a_pdf_gives_its_text_as_passages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = ["The first para-\ngraph goes on\nin a third line.", "A second page."]
    write_pdf(tmp_path / "a.pdf", pages)
    (tmp_path / "b.md").write_text("Text beside it.")
    assert list(read_sentences(str(tmp_path))) == [
        "The first paragraph goes on in a third line.",
        "A second page.",
        "Text beside it.",
    ]
    assert what_is_read(str(tmp_path)) == f"{tmp_path}: 2 files read (1 .pdf, 1 .md); left out: none"
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.7\nno more\n")
    with pytest.raises(InputError, match=r"broken\.pdf: can't be read as PDF"):
        list(read_sentences(str(tmp_path / "broken.pdf")))
    monkeypatch.setitem(sys.modules, "pypdf", None)
    with pytest.raises(InputError, match=r"a\.pdf: PDF needs pypdf; pip install pypdf, or name only"):
        list(read_sentences(str(tmp_path)))


@pytest.mark.parametrize("error", [NotImplementedError("AES needs a package\nmore"), IndexError("out of range")])
def test_whatever_pypdf_raises_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def extract_text(page: object) -> str:
        raise error

    write_pdf(tmp_path / "a.pdf", ["Text."])
    monkeypatch.setattr("pypdf.PageObject.extract_text", extract_text)
    with pytest.raises(InputError, match=r"a\.pdf: can't be read as PDF \((AES needs a package|out of range)\)$"):
        list(read_sentences(str(tmp_path / "a.pdf")))


def test_an_encrypted_pdf_is_one_line(tmp_path: Path) -> None:
    """AES-256 with an empty password, for which pypdf needs another package."""
    sizes = {"O": 48, "U": 48, "OE": 32, "UE": 32, "Perms": 16}
    keys = "".join(f"/{name}<{'00' * size}>" for name, size in sizes.items())
    objects = [
        "<</Type/Catalog/Pages 2 0 R>>",
        "<</Type/Pages/Kids[]/Count 0>>",
        f"<</Filter/Standard/V 5/R 6/Length 256/P -4{keys}/CF<</A<</CFM/AESV3>>>>/StmF/A/StrF/A>>",
    ]
    body = "\n".join(f"{number} 0 obj\n{text}\nendobj" for number, text in enumerate(objects, start=1))
    put(tmp_path / "a.pdf", f"%PDF-1.7\n{body}\ntrailer\n<</Root 1 0 R/Encrypt 3 0 R>>\nstartxref\n0\n%%EOF\n")
    with pytest.raises(InputError, match=r"a\.pdf: can't be read as PDF \(.*"):
        list(read_sentences(str(tmp_path / "a.pdf")))
