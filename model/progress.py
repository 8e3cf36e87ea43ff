"""Progress on stderr: a bar in a terminal, and in a log file a line now and then."""

import sys
from typing import Any, TextIO

from tqdm.auto import tqdm

EVERY = 10.0  # seconds between two lines
WIDTH = 100  # characters of a line


def progress_bar(total: int, unit: str, **options: Any) -> tqdm:
    """A tqdm bar over so many units. Outside a terminal it writes whole lines, one every ten seconds at most.

    `unit` has a space before it; `options` are others of tqdm's, such as `initial`, `desc` and `disable`.
    """
    if not sys.stderr.isatty():
        options |= {"file": _Lines(sys.stderr), "ncols": WIDTH, "ascii": True}
        options |= {"mininterval": EVERY, "maxinterval": EVERY}
    return tqdm(total=total, unit=unit, **options)


class _Lines:
    """A stream that turns tqdm's overwriting of one line into lines of their own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        line = text.strip("\r\n ")
        if line:
            self._stream.write(line + "\n")

    def flush(self) -> None:
        self._stream.flush()
