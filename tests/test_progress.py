"""Outside a terminal progress is whole lines, few of them."""

import io

import pytest

from shortstack.model import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("sys.stderr", stream)
    with progress.progress_bar(2000, " steps", desc="labels") as bar:
        for _ in range(2000):
            bar.update()
            bar.set_postfix_str("loss 1e-4, " + "x" * 300, refresh=False)
    return stream.getvalue()


def test_a_log_file_gets_few_whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    written = run(io.StringIO(), monkeypatch)
    assert "\r" not in written and written.endswith("\n")
    lines = written.splitlines()
    assert 1 <= len(lines) <= 3 and all(len(line) <= 200 for line in lines)
    assert "2000/2000" in lines[-1]


def test_there_is_a_line_each_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    assert len(run(io.StringIO(), monkeypatch).splitlines()) > 100


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\r" in run(Terminal(), monkeypatch)
