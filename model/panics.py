"""What a foreign tokenizer can do beside raising an error: panic in Rust, which is no Exception and prints."""

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from shortstack.model.files import InputError, first_line

ONE_THREAD = threading.RLock()  # two would each take the other's file for stderr


@contextlib.contextmanager
def tokenizer_errors(place: Path | str) -> Iterator[None]:
    """Let whatever a foreign tokenizer raises be an InputError. A panic in Rust is no Exception, and prints, too: that
    is not shown."""
    panicked = False
    with ONE_THREAD, holding_stderr(lambda: panicked):
        try:
            yield
        except BaseException as error:
            panicked = type(error).__name__ == "PanicException"
            if not isinstance(error, Exception) and not panicked:
                raise
            raise InputError(f"{place}: the tokenizer can't be read ({first_line(error)})") from None


@contextlib.contextmanager
def holding_stderr(dropped: Callable[[], bool]) -> Iterator[None]:
    """Hold back what the whole process writes to stderr in the block, and write it after it unless it is `dropped`.

    Other threads' lines come a little later by this; none is lost but beside a panic. A stderr that is closed stays so.
    """
    with contextlib.suppress(AttributeError, OSError, ValueError):
        sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # closed
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            if not dropped():
                held.seek(0)
                with contextlib.suppress(OSError):
                    os.write(2, held.read())
