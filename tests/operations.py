"""What tests do to a run's operations on files: let one fail, or note them all, to be replayed by disk.py."""

import builtins
import contextlib
import io
import itertools
import os
import pickle
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hooks import die

from shortstack import train
from shortstack.distillation.data import labels
from shortstack.distillation.training import checkpoint
from shortstack.model import files


def fault_at_operation(place: Path, number: int, error: int, counted: Path) -> None:
    """Let the n-th operation on files below a directory fail, counted from 1: opening one to write, writing, renaming,
    removing, making a directory, flushing to disk. Every operation of Python code is seen, whichever library asks for
    it; what C++ and Rust write is not. A write that fails has written half.

    Args:
        place: the directory.
        number: which operation; 0 lets none fail.
        error: an errno, or 0 for SIGKILL before the operation.
        counted: where to note the number of operations so far.
    """
    count, fsync = itertools.count(1), os.fsync

    def one_more(first: Callable[[], object] = lambda: None) -> None:
        now = next(count)
        if number == 0:
            counted.write_text(str(now))
        if now == number:
            first()
            if error == 0:
                die()
            raise OSError(error, os.strerror(error))

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        named = changes(event, arguments) and isinstance(arguments[0], str | Path)
        if named and str(arguments[0]).startswith(str(place)):
            one_more()

    def counted_fsync(descriptor: int) -> None:
        one_more()
        fsync(descriptor)

    class Raw(io.FileIO):
        def write(self, data: Any) -> int:
            one_more(lambda: io.FileIO.write(self, bytes(data)[: memoryview(data).nbytes // 2]))
            return super().write(data)

    os.fsync = counted_fsync
    sys.addaudithook(watch)
    write_through(Raw, place)


def changes(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether an event that Python reports changes a file or directory."""
    if event == "open":
        return isinstance(arguments[2], int) and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink")


def write_through(raw: type[io.FileIO], place: Path) -> None:
    """Let files below a directory that Python code opens to write be of this kind."""
    real = io.open

    def opened(file: Any, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
        ours = isinstance(file, str | Path) and str(file).startswith(str(place)) and "opener" not in keywords
        if not (ours and set(mode) & set("wax") and "+" not in mode):
            return real(file, mode, *arguments, **keywords)
        buffered = io.BufferedWriter(raw(file, mode.replace("b", "").replace("t", "")))
        if "b" in mode:
            return buffered
        names = dict(zip(("buffering", "encoding", "errors", "newline"), arguments, strict=False)) | keywords
        text = {key: names.get(key) for key in ("encoding", "errors", "newline")}
        return io.TextIOWrapper(buffered, **text)

    io.open = builtins.open = opened


class Journal:
    """What a run does to the files below a directory, in order, one pickle an operation; `disk.py` replays it.

    Beside operations that change a file or directory and those that flush it to disk there are marks: what the run took
    for saved by then.
    """

    def __init__(self, place: Path, path: Path) -> None:
        self.place, self.lock, self.busy = place, threading.RLock(), False
        self.dirty: dict[str, bytes] = {}  # files that were not flushed since they were opened to write
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.fsync, self.exchange = os.fsync, files.exchange
        os.fsync, files.exchange = self.flushed, self.exchanged
        sys.addaudithook(self.watch)

    def note(self, *entry: Any) -> None:
        with self.lock:
            self.busy = True
            for path in list(self.dirty):
                with contextlib.suppress(OSError):  # not there any more, or not yet
                    content = Path(path).read_bytes()
                    if content != self.dirty[path]:
                        self.dirty[path] = content
                        self.write("content", path, content)
            self.busy = False
            self.write(*entry)

    def write(self, *entry: Any) -> None:
        os.write(self.descriptor, pickle.dumps(entry))

    def watch(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.busy or not changes(event, arguments) or isinstance(arguments[0], int):
            return
        paths = [os.fsdecode(path) for path in arguments[:2] if isinstance(path, str | bytes | Path)]
        directory = arguments[1] if event in ("os.remove", "os.rmdir") else -1
        if isinstance(directory, int) and directory >= 0 and not os.path.isabs(paths[0]):
            paths[0] = os.path.join(os.readlink(f"/proc/self/fd/{directory}"), paths[0])
        if not paths[0].startswith(str(self.place)):
            return
        if event == "open":
            self.note("open", paths[0])
            self.dirty[paths[0]] = b""
        else:
            self.note(event.removeprefix("os."), *(paths if event in ("os.rename", "os.link") else paths[:1]))

    def flushed(self, descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if path.startswith(str(self.place)):
            for found in [Path(path)] if os.path.isfile(path) else Path(path).iterdir():
                if found.is_file():  # perhaps one that C++ or Rust wrote
                    self.note("open", str(found))
            if os.path.isfile(path):
                self.dirty.setdefault(path, b"")
            self.note("fsync", path)
            self.dirty.pop(path, None)
        self.fsync(descriptor)

    def exchanged(self, one: Path, other: Path) -> bool:
        done = self.exchange(one, other)
        if done:
            self.note("exchange", str(one), str(other))
        return done

    def mark(self, owner: Any, name: str, value: Callable[..., Any]) -> None:
        """Note a mark with `value` of its arguments after each call of a function."""
        real = getattr(owner, name)

        def marking(*arguments: Any, **keywords: Any) -> Any:
            found = real(*arguments, **keywords)
            self.note("mark", name, value(*arguments, **keywords))
            return found

        setattr(owner, name, marking)


def record_operations(place: Path, path: Path) -> None:
    """Note in a file what a run does to the files below a directory, and what it took for saved."""
    journal = Journal(place, path)
    journal.mark(checkpoint, "save_checkpoint", lambda path, model, optimizer, progress, settings: progress.step)
    journal.mark(labels, "write_shard", lambda store, name, shard: str(store.directory / labels.shard_name(name)))
    journal.mark(train, "hand_over", lambda *arguments: None)
