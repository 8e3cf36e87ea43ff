"""Runs of train.py in processes of their own: by the command line, by torchrun, or forked from a process that has
imported it already, which spares the seconds that importing torch takes."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
TRAIN = str(ROOT / "train.py")
LIMIT = 120  # seconds; what takes longer hangs
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(["train", "runs"])


@dataclass
class Outcome:
    """How a process ended: its exit status (-9 after SIGKILL) and what it printed."""

    status: int | None
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line on stderr that says what was wrong; nothing else may be there but progress bars."""
        lines = [line for line in self.err.replace("\r", "\n").splitlines() if line.strip() and "|" not in line]
        assert len(lines) == 1 and lines[0].startswith("error: "), self.err
        return lines[0]


# -- forked ----------------------------------------------------------------------------------------------------------


def child(arguments: Sequence[str], files: tuple[str, str], environment: dict[str, str], before: Any) -> None:
    """What the forked process does."""
    for descriptor, path in zip((1, 2), files, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.environ.update(environment)
    torch.set_num_threads(1)
    import train
    from model.files import run_command

    sys.argv = [TRAIN, *arguments]
    if before is not None:
        before()
    run_command(train.main)


class Started:
    """A run that was forked and is at work."""

    def __init__(
        self,
        directory: Path,
        arguments: Sequence[str],
        environment: dict[str, str] | None = None,
        before: Callable[[], object] | None = None,
    ) -> None:
        number = len(list(directory.glob("*.out")))
        self.files = directory / f"{number}.out", directory / f"{number}.err"
        self.files[0].touch()
        os.environ |= ENVIRONMENT  # the server's, when the first fork starts it
        parts = (list(arguments), tuple(map(str, self.files)), environment or {}, before)
        self.process = forks.Process(target=child, args=parts)
        self.process.start()

    def outcome(self) -> Outcome:
        """Wait for the end."""
        self.process.join(LIMIT)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"hangs: {self.files[1].read_text()}")
        out, err = (path.read_text() for path in self.files)
        return Outcome(self.process.exitcode, out, err)


def train(directory: Path, *arguments: str, before: Callable[[], object] | None = None) -> Outcome:
    """Run train.py to its end in a forked process.

    Args:
        directory: where its output is kept.
        arguments: of the command line.
        before: called in that process before train.main; a function that can be pickled.
    """
    return Started(directory, arguments, before=before).outcome()
