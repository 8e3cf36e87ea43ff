"""The run directory: one run at a time, nothing of an earlier run lost, a complete log, and a way to resume."""

import contextlib
import dataclasses
import hashlib
import json
import math
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from shlex import quote
from typing import Any, NoReturn

from filelock import FileLock, Timeout

from shortstack import distillation, model
from shortstack.distillation import RunError
from shortstack.distillation.curves import TRACKERS, Callback, trackers_of
from shortstack.distillation.ranks import Ranks
from shortstack.distillation.recipe import Recipe, versions
from shortstack.model.files import InputError, errors_about, flush_to_disk, make_directory, remove_leftovers, write_text

STOP_CHECK_EVERY = 10  # steps between asking the other ranks whether one received a signal


class Run:
    """One run: its recipe, its processes, and its directory, which no other run may use meanwhile.

    Attributes:
        recipe: its settings; from `begin` on with everything that was decided.
        ranks: its processes.
        directory: `output/name`.
        resume: whether to resume from the last checkpoint, if there is one.
        callbacks: called with each line of the log, by rank 0.
    """

    def __init__(self, recipe: Recipe, ranks: Ranks, resume: bool, callbacks: Sequence[Callback] = ()) -> None:
        self.recipe, self.ranks = recipe, ranks
        self.directory = recipe.directory
        self._log = self.directory / "log.jsonl"
        self._callbacks = list(callbacks)
        self._to_close = contextlib.ExitStack()
        self._begun = self._in_steps = False
        self._stop_signal = 0
        # torchrun starts all ranks again after one was lost; they resume the run.
        self.resume = ranks.any(resume or ranks.restarted)
        in_main = threading.current_thread() is threading.main_thread()  # no other thread may set handlers
        # SIGHUP: a dropped connection. SIGUSR1: Slurm, before the time is up.
        signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1) if in_main else ()
        numbers = [number for number in signals if signal.getsignal(number) != signal.SIG_IGN]  # as under nohup
        self._handlers = {number: signal.signal(number, self._note_signal) for number in numbers}

    def _note_signal(self, number: int, frame: Any) -> None:
        if self._stop_signal or not self._in_steps:  # asked twice: stop at once, the last checkpoint is whole
            raise KeyboardInterrupt
        self._stop_signal = number

    @contextlib.contextmanager
    def taking_steps(self) -> Iterator[None]:
        """Let SIGTERM, SIGHUP, SIGUSR1 and Ctrl-C wait for the end of a step and its checkpoint while the block runs.

        Outside of it they end the run at once, since what is finished is on disk already.
        """
        self._in_steps = True
        try:
            yield
        finally:
            self._in_steps = False

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other runs out of the directory while the block runs.

        Raises:
            InputError: another process is running there.
            RunError: the block was stopped by a signal.
        """
        busy = f"{self.directory}: another run is at work there; give this one another --name"
        lock = self.directory.with_name(f".{self.directory.name}.lock")
        try:
            with locked(lock, busy) if self.ranks.is_main else contextlib.nullcontext():
                yield
        except KeyboardInterrupt:
            self.end(f"stopped; what is finished is kept; go on with: {self.again}")
        finally:
            self._to_close.close()
            for number, handler in self._handlers.items():
                signal.signal(number, handler)

    def begin(self, recipe: Recipe) -> None:
        """Take the directory: an earlier run's is moved aside, unless this run resumes it.

        Call it when everything that can be checked has been: a typo must not move a student that is in use. `recipe` is
        the run's own with all that was decided, such as which layers.
        """
        self.recipe = recipe
        self._begun = True
        if not self.ranks.is_main:
            return
        there = (self.directory / "recipe.toml").exists()
        if there and not self.resume:
            self._move_aside()
        if self.resume and not there:
            runs = [path.parent.name for path in self.directory.parent.glob("*/recipe.toml")]
            others = f" ({self.directory.parent} has {', '.join(sorted(runs))})" if runs else ""
            self.say(f"note: --resume: there is no run {self.directory}{others}; this one starts from the beginning")
        for directory in (self.directory, self.directory / "checkpoints"):
            make_directory(directory)
            remove_leftovers(directory)

    def _move_aside(self) -> None:
        number = 1
        while (aside := self.directory.with_name(f"{self.directory.name}.{number}")).exists():
            number += 1
        self.directory.rename(aside)
        print(
            f"{self.directory} was there already: moved to {aside} "
            f"(to undo it once this run has ended: rm -r {quote(str(self.directory))} && "
            f"mv {quote(str(aside))} {quote(str(self.directory))})"
        )

    def say(self, text: str) -> None:
        """Print a line, once for all ranks."""
        if self.ranks.is_main:
            print(text, flush=True)

    @property
    def again(self) -> str:
        """The command that resumes this run."""
        recipe = self.directory / "recipe.toml"
        if not (self._begun and recipe.exists()):
            return "the same command"
        ours = Path(distillation.__path__[0]).parent / "train.py"
        command = sys.argv[0] if Path(sys.argv[0]).resolve() == ours.resolve() else "shortstack train"
        if self.ranks.world > 1:
            command = f"torchrun (options as before) {command}"
        elif command != "shortstack train":
            command = f"python {command}"
        return f"{command} {quote(str(recipe))} --resume"

    def end(self, what: str) -> NoReturn:
        """End a run early on all ranks; they must come here together.

        Raises:
            RunError: says `what` happened, on rank 0; the other ranks end without a message.
        """
        if not self.ranks.is_main:
            sys.exit(1)
        raise RunError(what)

    def cut_log(self, step: int) -> None:
        """Drop log lines of steps after `step`, which will be taken again, and open the trackers of `report_to`."""
        if self.ranks.is_main:
            settings = dataclasses.asdict(self.recipe)
            for name in trackers_of(self.recipe.report_to):
                callback, close = TRACKERS[name](self.directory, settings, step)
                self._callbacks.append(callback)
                self._to_close.callback(close)
        if self.ranks.is_main and self._log.exists():
            steps = [line for line in read_json_lines(self._log) if type(line.get("step")) is int]
            kept = [json.dumps(line) + "\n" for line in steps if line["step"] <= step]
            write_text(self._log, "".join(kept))

    def log(self, line: dict[str, Any]) -> None:
        """Append one line to log.jsonl and hand it to the callbacks; NaN and infinity, unknown to JSON, become null."""
        if self.ranks.is_main:
            line = {key: value if math.isfinite(value) else None for key, value in line.items()}
            with errors_about(self._log, self._log), open(self._log, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            for callback in self._callbacks:
                callback(line)

    def flush_log(self) -> None:
        """Flush the log to disk: a power cut loses no line of a step that a checkpoint has."""
        for path in (self._log, self.directory):
            if path.exists():
                flush_to_disk(path)

    def stop_wanted(self, step: int) -> bool:
        """Whether a rank received a signal to stop (see `taking_steps`): the same answer on every rank."""
        if self.ranks.world > 1:
            return step % STOP_CHECK_EVERY == 0 and self.ranks.any(self._stop_signal != 0)
        return self._stop_signal != 0


def what_decides(recipe: Recipe) -> dict[str, Any]:
    """What must be the same on all ranks of a run: its settings, the versions of packages, and the code."""
    settings = {key: value for key, value in dataclasses.asdict(recipe).items() if key != "device"}
    code = hashlib.sha256()
    for package in (distillation, model):
        for path in sorted(Path(package.__path__[0]).rglob("*.py")):
            code.update(path.read_bytes())
    return settings | versions() | {"code": code.hexdigest()[:16]}


def run_directory(model: str) -> Path | None:
    """The run that a model directory belongs to: the directory above it, if there is a recipe in it."""
    above = Path(model).resolve().parent if model == "." else Path(model).parent
    return above if Path(model).is_dir() and (above / "recipe.toml").is_file() else None


@contextlib.contextmanager
def locked(path: Path, busy: str | None = None) -> Iterator[None]:
    """Hold a lock file while the block runs. The system releases it when the process ends, however it ends.

    If another process holds it, an InputError says `busy`; None waits for it instead.
    """
    make_directory(path.parent)
    try:
        with FileLock(path, timeout=-1 if busy is None else 0):
            yield
    except Timeout:
        raise InputError(str(busy)) from None


def read_json_lines(path: Path | str) -> list[dict[str, Any]]:
    """The objects of a file with one JSON value a line. A line that a crash cut short is skipped."""
    objects = []
    for line in Path(path).read_text(encoding="utf-8", errors="replace").split("\n"):
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(line)
            if isinstance(value, dict):
                objects.append(value)
    return objects
