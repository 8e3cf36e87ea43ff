"""Runs of train.py in processes of their own: by the command line, by torchrun, or forked.

A forked run comes from a server process that has imported torch and train already: the same code in a process of its
own, without the seconds that importing takes.
"""

import json
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tiny import english_sentences
from tqdm.auto import tqdm

ROOT = Path(__file__).resolve().parent.parent
TRAIN = str(ROOT / "train.py")
LIMIT = 300  # seconds; what takes longer hangs
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
ENVIRONMENT["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])

printed = tempfile.TemporaryDirectory()  # where forked runs print to
forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(["shortstack.train", "processes", "hooks", "operations"])


@dataclass
class Outcome:
    """How a process ended: its exit status (-9 after SIGKILL) and what it printed."""

    status: int | None
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line on stderr that says what was wrong; beside it there may be progress bars, but nothing else."""
        lines = [line for line in re.split("[\r\n]+", self.err) if line.strip() and "%|" not in line]
        assert len(lines) == 1 and lines[0].startswith("error: "), self.err
        return lines[0]


@dataclass
class RunDirectory:
    """What a run left."""

    path: Path

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.path / "log.jsonl").read_text().splitlines()]

    def logged(self, key: str) -> dict[int, float]:
        """A figure of the log by step."""
        steps = [line["step"] for line in self.log if key in line]
        assert len(steps) == len(set(steps)), f"{key} is there twice for a step: {steps}"
        return {line["step"]: line[key] for line in self.log if key in line}

    @cached_property
    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.path / "model" / "model.safetensors")

    def json(self, name: str) -> Any:
        return json.loads((self.path / name).read_text())

    def leftovers(self) -> list[Path]:
        """Temporary files that should not be there."""
        return [path for path in self.path.rglob("*") if path.name.endswith((".tmp", ".old"))]


def write_recipe(directory: Path, teacher: Path, sentences: int = 240, prompt: str = "", **changes: Any) -> Path:
    """A recipe for a run of a few seconds, with its text beside it; returns its path.

    Args:
        directory: where to; runs go to `directory`/runs.
        teacher: model directory.
        sentences: of text; 40 of them are held out.
        prompt: put before every sentence of the text and of the STS set.
        changes: other recipe fields.
    """
    directory.mkdir(parents=True, exist_ok=True)
    text, sts = directory / "text.txt", directory / "sts.tsv"
    text.write_text("\n".join(prompt + sentence for sentence in english_sentences(sentences)), encoding="utf-8")
    pairs = zip(english_sentences(20, seed=5), english_sentences(20, seed=6), strict=True)
    rows = [f"{prompt}{first}\t{prompt}{second}\t{number % 6}" for number, (first, second) in enumerate(pairs)]
    sts.write_text("\n".join(["sentence1\tsentence2\tscore", *rows]), encoding="utf-8")
    fields = {
        "teacher": str(teacher), "layers": [0, 2, 5], "sentences": [str(text)], "sts": {"sts-dev": str(sts)},
        "evaluation_sentences": 40, "batch_size": 20, "learning_rate": 1e-3, "precision": "fp32", "device": "cpu",
        "evaluate_every": 10, "save_every": 10, "output": str(directory / "runs"),
    } | changes  # fmt: skip
    path = directory / "tiny.toml"
    tables = {key: value for key, value in fields.items() if isinstance(value, dict)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in fields.items() if key not in tables]
    for key, table in tables.items():
        lines += [f"[{key}]", *(f"{json.dumps(name)} = {json.dumps(value)}" for name, value in table.items())]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def same_weights(one: RunDirectory, other: RunDirectory) -> bool:
    """Whether two students are equal bit for bit."""
    return one.weights.keys() == other.weights.keys() and all(
        torch.equal(tensor, other.weights[name]) for name, tensor in one.weights.items()
    )


def assert_same_run(run: RunDirectory, other: RunDirectory) -> None:
    """The same weights bit for bit, the same figures, each step's lines once, nothing left behind."""
    assert same_weights(run, other)
    for key in ("loss", "grad_norm", "learning_rate", "negative_mse", "sts_dev_spearman_cosine"):
        assert run.logged(key) == other.logged(key)
    assert run.json("evaluation.json")["best_step"] == other.json("evaluation.json")["best_step"]
    assert run.leftovers() == []


# -- from the command line -------------------------------------------------------------------------------------------


def command(*arguments: str | Path, cwd: Path | None = None) -> Outcome:
    """`python ARGUMENTS` as a user types it."""
    process = launch([sys.executable, *map(str, arguments)], cwd)
    out, err = process.communicate(timeout=LIMIT)
    return Outcome(process.returncode, out, err)


def launch(arguments: Sequence[str], cwd: Path | None = None, **environment: str) -> subprocess.Popen[str]:
    """Start a process without waiting for it."""
    return subprocess.Popen(
        arguments, cwd=cwd, env=os.environ | ENVIRONMENT | environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


# -- forked ----------------------------------------------------------------------------------------------------------


def child(arguments: Sequence[str], files: Sequence[Path], environment: dict[str, str], before: Any) -> None:
    """What a forked process does."""
    for descriptor, path in zip((1, 2), files, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.environ.update(environment)
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own would be a system's semaphore, which a killed process leaves behind
    from shortstack import train
    from shortstack.distillation.command_line import run_command

    sys.argv = [TRAIN, *arguments]
    if before is not None:
        before()
    run_command(train.main)


class Forked:
    """A run in a forked process.

    Args:
        arguments: of train.py's command line.
        before: called in the process before train.main; a function that can be pickled.
        environment: variables to set.
    """

    count = 0

    def __init__(
        self,
        *arguments: str | Path,
        before: Callable[[], object] | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        Forked.count += 1
        self.files = [Path(printed.name) / f"{Forked.count}.{kind}" for kind in ("out", "err")]
        os.environ |= ENVIRONMENT  # the server's, which the first fork starts
        self.process = forks.Process(target=child, args=([*map(str, arguments)], self.files, environment or {}, before))
        self.process.start()

    def outcome(self) -> Outcome:
        """Wait for the end."""
        self.process.join(LIMIT)
        hangs = self.process.exitcode is None
        if hangs:
            self.process.kill()
        out, err = (path.read_text() for path in self.files)
        assert not hangs, f"hangs: {out} {err}"
        return Outcome(self.process.exitcode, out, err)


def train(*arguments: str | Path, before: Callable[[], object] | None = None) -> Outcome:
    """Run train.py to its end in a forked process."""
    return Forked(*arguments, before=before).outcome()


def in_a_process(action: Callable[..., Any], *arguments: object) -> Any:
    """What a module's function gives, called in a forked process of its own; its error is raised here."""
    os.environ |= ENVIRONMENT
    with ProcessPoolExecutor(1, mp_context=forks) as pool:
        return pool.submit(action, *arguments).result(LIMIT)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def forked_ranks(world: int, *arguments: str | Path, before: Callable[[], object] | None = None) -> list[Outcome]:
    """Run train.py to its end on so many ranks."""
    return [rank.outcome() for rank in start_ranks(world, *arguments, before=before)]


def start_ranks(world: int, *arguments: str | Path, before: Callable[[], object] | None = None) -> list[Forked]:
    """Start train.py on so many ranks, with the environment that torchrun would give them, in forked processes."""
    shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [
        Forked(*arguments, before=before, environment=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(world)
    ]


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for a condition that another process brings about."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def in_child(action: Callable[[], None], errors: Path) -> tuple[int, str]:
    """Run an action in a fork of this process; returns its exit status and what it wrote to `errors`, its stderr."""

    def main() -> None:
        sys.stderr = errors.open("w", encoding="utf-8")
        action()

    process = multiprocessing.get_context("fork").Process(target=main)
    process.start()
    process.join(60)
    assert process.exitcode is not None, "the child hangs"
    return process.exitcode, errors.read_text(encoding="utf-8")
