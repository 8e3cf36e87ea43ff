"""What tests do inside a run of train.py: small changes to it before it starts, each to bring about one event."""

import builtins
import contextlib
import io
import itertools
import math
import os
import pickle
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from shortstack import train
from shortstack.distillation import losses
from shortstack.distillation.data import labels
from shortstack.distillation.run import Run
from shortstack.distillation.training import checkpoint, meter
from shortstack.model import Embedder, files, tensors


def at_call(owner: Any, name: str, number: int, action: Callable[[], object]) -> None:
    """Do something before the n-th call of a function, counted from 1."""
    real, count = getattr(owner, name), itertools.count(1)

    def counted(*arguments: Any, **keywords: Any) -> Any:
        if next(count) == number:
            action()
        return real(*arguments, **keywords)

    setattr(owner, name, counted)


def note_shards(shards_written: Path) -> None:
    """Note in a file which rank writes which shard."""
    real = labels.write_shard

    def noting(store: labels.Store, name: int | str, *arguments: Any) -> None:
        real(store, name, *arguments)
        with shards_written.open("a") as file:
            file.write(f"{os.environ.get('RANK', 0)}:{Path(labels.shard_name(name)).stem}\n")

    labels.write_shard = noting


def overlapping(then: Callable[[], None]) -> None:
    """Let threads work ahead as beside a GPU, and do something else, too, before the run starts."""
    train.overlaps = labels.overlaps = lambda device: True
    then()


def note_batches(path: Path) -> None:
    """Note in a file how many tokens each batch has that is embedded out of training."""
    real = Embedder.forward

    def noting(embedder: Embedder, tokens: Any) -> Any:
        if not embedder.training:
            with path.open("a") as file:
                file.write(f"{len(tokens.input_ids)}\n")
        return real(embedder, tokens)

    Embedder.forward = noting


def measure_memory(path: Path) -> None:
    """Write the process's peak memory in bytes to a file at its end."""
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ[cache] = "1"  # torch's caches of CPU kernels, which grow by each new shape, up to 1024 of them
    main = train.main

    def measured() -> None:
        main()
        unit = 1 if sys.platform == "darwin" else 1024
        path.write_text(str(unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))

    train.main = measured


# -- ends and damage -------------------------------------------------------------------------------------------------


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_after_calls(name: str, calls: int) -> None:
    """SIGKILL at any moment: before a call of some function, Python's or C's, counted from the first train.`name`."""
    real = getattr(train, name)

    def armed(*arguments: Any) -> Any:
        count = itertools.count(1)

        def watch(frame: Any, event: str, argument: Any) -> None:
            if event in ("call", "c_call") and next(count) == calls:
                die()

        setattr(train, name, real)
        sys.setprofile(watch)
        return real(*arguments)

    setattr(train, name, armed)


def kill_while_writing(name: str, share: float, earlier: int = 0) -> None:
    """SIGKILL when this share of a tensor file is written: the next whose name holds `name` after some `earlier`."""
    real, count = tensors.write_safetensors, itertools.count()

    def dying(tensors: Any, path: Path, metadata: Any) -> None:
        real(tensors, path, metadata)
        if name in path.name and next(count) == earlier:
            os.truncate(path, int(share * path.stat().st_size))
            die()

    tensors.write_safetensors = dying


def signal_at_step(number: int, step: int, times: int = 1) -> None:
    """Send a signal to ourselves before a step."""
    at_call(train, "train_step", step, lambda: [os.kill(os.getpid(), number) for _ in range(times)])


def hang_at_step(rank: int, step: int) -> None:
    """Let one rank hang in a step."""
    if os.environ["RANK"] == str(rank):
        signal_at_step(signal.SIGSTOP, step)


def die_at_step(rank: int, step: int) -> None:
    """Let one rank be killed in a step."""
    if os.environ["RANK"] == str(rank):
        signal_at_step(signal.SIGKILL, step)


def blind_rank(rank: int, name: str) -> None:
    """Let files of this name not be there for one rank, as on a host with a file system of its own."""
    real = Path.exists

    def exists(path: Path) -> bool:
        return path.name != name and real(path)

    if os.environ["RANK"] == str(rank):
        Path.exists = exists


def signal_while_labelling(number: int) -> None:
    """Send a signal to ourselves when the second shard is about to be embedded."""
    at_call(Embedder, "embed", 2, lambda: os.kill(os.getpid(), number))


# -- faults ----------------------------------------------------------------------------------------------------------


def limit_file_size(size: int) -> None:
    """From now on no file of this process can grow beyond so many bytes, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def full_disk_while_saving(call: int, size: int) -> None:
    """Let the disk be full from the n-th checkpoint on."""
    at_call(checkpoint, "save_checkpoint", call, lambda: limit_file_size(size))


def full_disk_while_logging(call: int) -> None:
    """Let the log's n-th line meet a full disk; what is printed meanwhile is shorter than the log is made here."""
    real, count = Run.log, itertools.count(1)

    def limited(run: Run, line: dict[str, Any]) -> None:
        if next(count) == call:
            path = run.directory / "log.jsonl"
            with path.open("a") as file:
                file.write(" " * 50_000 + "\n")
            limit_file_size(path.stat().st_size + 10)
        real(run, line)

    Run.log = limited


def damage_after_labelling(name: str) -> None:
    """Flip a bit of a shard between labelling and training."""
    real = train.label_corpus

    def damaged(*arguments: Any) -> labels.Labels:
        found = real(*arguments)
        flip_bit(found.directory / name)
        return found

    train.label_corpus = damaged


def flip_bit(path: Path) -> None:
    """Flip one bit of a file's last quarter, where the tensors are."""
    content = bytearray(path.read_bytes())
    content[-len(content) // 8] ^= 1
    path.write_bytes(content)


def nan_losses(first: int, last: int) -> None:
    """Let the loss of some steps, counted from 1, be NaN."""
    real, count = losses.LOSSES["mse"], itertools.count(1)

    def mse(*arguments: torch.Tensor) -> torch.Tensor:
        return real(*arguments) * (math.nan if first <= next(count) <= last else 1.0)

    losses.LOSSES["mse"] = mse


def raise_at_step(error: Exception, step: int) -> None:
    """Raise an error in a step."""

    def fail() -> None:
        raise error

    at_call(train, "train_step", step, fail)


def become_nobody() -> None:
    """Give up root's right to write everywhere."""
    if os.geteuid() == 0:
        os.seteuid(65534)


def count_seconds() -> None:
    """Let the log's clock go on by a second in each step, and by a thousand in each evaluation and each checkpoint."""
    clock = SimpleNamespace(now=0, perf_counter=lambda: clock.now)
    meter.time = clock

    def taking(seconds: int, real: Callable) -> Callable:
        def timed(*arguments: Any) -> Any:
            clock.now += seconds
            return real(*arguments)

        return timed

    train.train_step = taking(1, train.train_step)
    train.Judge.quickly = taking(1000, train.Judge.quickly)
    checkpoint.save_checkpoint = taking(1000, checkpoint.save_checkpoint)


def slow_steps(seconds: float) -> None:
    """Sleep before each step."""
    real = train.train_step

    def slow(*arguments: Any) -> Any:
        time.sleep(seconds)
        return real(*arguments)

    train.train_step = slow


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


def report_instead(run: Path, then: Callable[[], None]) -> None:
    """Report a finished run instead of training one."""
    from shortstack.distillation.report.__main__ import write_report

    train.main = lambda: write_report(run)
    then()


def export_instead(model: Path, then: Callable[[], None]) -> None:
    """Export a student instead of training one."""
    from shortstack.distillation import export

    def main() -> None:
        sys.argv = ["export", str(model)]
        export.main()

    train.main = main
    then()


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
