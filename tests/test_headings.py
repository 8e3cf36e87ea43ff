"""Queries made of headings: each asks for the paragraphs below it, in whatever kind of document."""

from pathlib import Path

from shortstack.distillation.evaluation.headings import heading_queries


def test_a_heading_asks_for_the_paragraphs_below_it(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.md", "b.html", "c.txt")]
    files[0].write_text("Before any.\n\n# How to open\n\nTurn the key.\n\nPush.\n\n## None\n\n## Example\n\nLike so.\n")
    files[1].write_text("<h2>Example</h2><p>Or so.<p>Turn the key.<h2>How to close</h2><p>Pull.")
    files[2].write_text("Not a document with headings.")
    found = heading_queries("own", files)
    assert found.queries == ["How to open", "Example", "How to close"]
    assert found.documents == ["Before any.", "Turn the key.", "Push.", "Like so.", "Or so.", "Pull."]
    assert [set(grades) for grades in found.grades] == [{1, 2}, {3, 4, 1}, {5}]
    assert heading_queries("own", files[2:]).queries == []
