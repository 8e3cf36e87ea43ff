"""The run directory: one run at a time, nothing of an earlier run lost, a log that survives, a stop that can be undone."""

import contextlib
import fcntl
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distillation.ranks import Ranks
from distillation.recipe import Recipe
from model.files import InputError, write_text

STOP_CHECK_EVERY = 10  # steps between asking the other ranks whether one was told to stop


class Run:
    """A run directory that this process holds.

    Attributes:
        directory: `output/name`.
        resume: whether to go on from the last checkpoint, if there is one.
        last, best: files of the checkpoint to go on from, and of the best weights.
    """

    def __init__(self, recipe: Recipe, ranks: Ranks, resume: bool) -> None:
        self.directory = recipe.directory
        self.last = self.directory / "checkpoints/last.safetensors"
        self.best = self.directory / "checkpoints/best.safetensors"
        self._log = self.directory / "log.jsonl"
        self._ranks = ranks
        self._stop_signal = 0
        # torchrun starts all ranks again after one was lost; they go on where the run was.
        self.resume = resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note_signal)

    def _note_signal(self, number: int, frame: Any) -> None:
        if self._stop_signal:  # asked twice: stop at once, the last checkpoint is whole
            raise KeyboardInterrupt
        self._stop_signal = number

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other runs out of the directory for as long as the block lasts; an earlier run's files are moved aside.

        Raises:
            InputError: another process is running there.
        """
        if not self._ranks.is_main:
            yield
            return
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        lock_path = self.directory.with_name(f".{self.directory.name}.lock")
        with open(lock_path, "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"{self.directory}: another run is at work there; give this one another --name") from None
            if not self.resume and (self.directory / "recipe.toml").exists():
                self._move_aside()
            self.directory.mkdir(exist_ok=True)
            yield

    def _move_aside(self) -> None:
        number = 1
        while (aside := self.directory.with_name(f"{self.directory.name}.{number}")).exists():
            number += 1
        self.directory.rename(aside)
        print(f"{self.directory} was there already: moved to {aside} (--resume would have gone on with it)")

    def cut_log(self, step: int) -> None:
        """Drop log lines of steps after `step`, which will be taken again."""
        kept = []
        if self._ranks.is_main and self._log.exists():
            for line in self._log.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(json.JSONDecodeError, KeyError):  # a line that a crash cut short
                    if json.loads(line)["step"] <= step:
                        kept.append(line + "\n")
            write_text(self._log, "".join(kept))

    def log(self, line: dict[str, Any]) -> None:
        """Append one line to log.jsonl."""
        if self._ranks.is_main:
            with open(self._log, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def stop_wanted(self, step: int) -> bool:
        """Whether a rank was told to stop (SIGTERM or Ctrl-C): the same answer on every rank."""
        if self._ranks.world > 1:
            return step % STOP_CHECK_EVERY == 0 and self._ranks.any(self._stop_signal != 0)
        return self._stop_signal != 0
