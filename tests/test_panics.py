"""What a foreign tokenizer raises is one line, and nothing that others write to stderr meanwhile is lost."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shortstack.model.files import InputError
from shortstack.model.panics import tokenizer_errors


class PanicException(BaseException):
    """As the one of pyo3, which can't be imported."""


def test_a_panic_is_one_line_and_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="here: the tokenizer can't be read \\(bad\\)"), tokenizer_errors("here"):
        os.write(2, b"thread panicked at")
        raise PanicException("bad")
    os.write(2, b"after")
    assert capfd.readouterr().err == "after"


@pytest.mark.parametrize("error", [None, ValueError("bad"), KeyboardInterrupt()], ids=repr)
def test_what_was_written_to_stderr_comes_later(error: BaseException | None, capfd: pytest.CaptureFixture[str]) -> None:
    try:
        with tokenizer_errors("here"):
            os.write(2, b"during ")
            if error is not None:
                raise error
    except (InputError, KeyboardInterrupt) as raised:
        assert isinstance(raised, InputError) == isinstance(error, Exception)
    os.write(2, b"after")
    assert capfd.readouterr().err == "during after"


def test_threads_take_turns(capfd: pytest.CaptureFixture[str]) -> None:
    """Else the second would keep the first one's temporary file as stderr, and all that is written later were lost."""
    first_in, second_in, first_out = (threading.Event() for _ in range(3))

    def first() -> None:
        with tokenizer_errors("here"):
            os.write(2, b"one ")
            first_in.set()
            second_in.wait(timeout=0.2)
        first_out.set()

    def second() -> None:
        first_in.wait()
        with tokenizer_errors("here"):
            os.write(2, b"two ")
            second_in.set()
            first_out.wait()

    with ThreadPoolExecutor(2) as pool:
        for ended in [pool.submit(first), pool.submit(second)]:
            ended.result()
    os.write(2, b"after")
    assert capfd.readouterr().err == "one two after"


def test_a_closed_stderr_is_no_error(tmp_path: Path) -> None:
    kept = os.dup(2)
    os.close(2)
    try:
        with tokenizer_errors("here"):
            done = True
    finally:
        os.dup2(kept, 2)
        os.close(kept)
    assert done
