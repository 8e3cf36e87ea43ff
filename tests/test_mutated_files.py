"""Files of a run that were edited, damaged or mixed up: each command works or says so in one line."""

import copy
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_hostile import VALUES
from test_report import EVALUATION, make_run
from tiny import write

from shortstack.distillation.evaluation.results import merged, read_results
from shortstack.distillation.evaluation.sets import read_held_out
from shortstack.distillation.recipe import read_recipe
from shortstack.distillation.report import __main__ as report
from shortstack.distillation.run import Run
from shortstack.model.files import InputError

WEIGHTS = {"student": {"weights": "a", "precision": "fp32"}, "teacher": {"weights": "b", "precision": "fp32"}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with all files that commands read again."""
    run = make_run(tmp_path / "run")
    figures = json.loads((run / "evaluation.json").read_text())
    figures["models"] = {who: figures["models"][who] | WEIGHTS[who] for who in WEIGHTS}
    write(run / "evaluation.json", figures)
    write(run / "held_out.json", {"sentences": ["one", "two"], "roles": ["", "query"]})
    return run


def nonsense(value: Any, draw: random.Random) -> Any:
    """A copy of a JSON value with nonsense somewhere in it, or something missing."""
    if not isinstance(value, dict | list) or not value or draw.random() < 0.15:
        return draw.choice([*VALUES, [1, "a"], {"a": {"b": 1}}])
    value = copy.copy(value)
    key = draw.choice(list(value) if isinstance(value, dict) else range(len(value)))
    if draw.random() < 0.15:
        del value[key]
    else:
        value[key] = nonsense(value[key], draw)
    return value


def mutate(path: Path, draw: random.Random) -> None:
    """Put nonsense into a file, cut it off, or change bytes of it."""
    content = path.read_bytes()
    place, kind = draw.randrange(len(content)), draw.randrange(6)
    if kind == 0:
        path.write_bytes(content[:place])
    elif kind == 1:
        path.write_bytes(content[:place] + draw.randbytes(4) + content[place + 4 :])
    elif path.suffix == ".json":
        path.write_text(json.dumps(nonsense(json.loads(content), draw)))
    else:
        lines = content.decode().splitlines()
        number = draw.randrange(len(lines))
        if path.suffix == ".jsonl":
            lines[number] = json.dumps(nonsense({"step": 3, "loss": 0.5, "negative_mse": -1.0}, draw))
        else:
            lines[number] = f"{lines[number].partition(' = ')[0]} = {json.dumps(draw.choice(VALUES))}"
        path.write_text("\n".join(lines))


def read_as_evaluate(run: Path) -> None:
    merged(read_results(run), (EVALUATION | {"models": WEIGHTS}, {}))
    read_held_out(run)


def read_as_train(run: Path) -> None:
    """What `--resume` reads but for the checkpoint."""
    read_recipe(run / "recipe.toml").check()
    alone = SimpleNamespace(is_main=True, any=bool, restarted=False)
    recipe = SimpleNamespace(directory=run)
    Run(recipe, alone, True).cut_log(10)  # type: ignore[arg-type]


def check_commands(run: Path, draw: random.Random, seed: int) -> None:
    names = ["evaluation.json", "evaluation_pairs.json", "data.json", "held_out.json", "bench.json", "log.jsonl"]
    path = run / [*names, "recipe.toml"][seed % 7]
    mutate(path, draw)
    for command in (report.write_report, read_as_evaluate, read_as_train):
        try:
            command(run)
        except InputError as error:
            assert len(str(error)) < 1000, (seed, path.name, error)
        except Exception as error:
            raise AssertionError(f"seed {seed}, {command.__name__}: {path.read_bytes()[:2000]!r}") from error


@pytest.mark.parametrize("seeds", [range(110), pytest.param(range(110, 2000), marks=pytest.mark.long)], ids=str)
def test_a_mutated_file_is_read_or_refused_in_one_line(
    run: Path, seeds: range, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The pictures of the first are laid out and drawn in `test_a_mutated_file_is_drawn_or_refused`."""
    monkeypatch.setattr(report, "write_picture", lambda path, picture: None)
    whole = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for seed in seeds:
        check_commands(run, random.Random(seed), seed)
        for path, content in whole.items():
            path.write_bytes(content)


@pytest.mark.long
def test_a_mutated_file_is_drawn_or_refused(run: Path) -> None:
    whole = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for seed in range(110):
        check_commands(run, random.Random(seed), seed)
        for path, content in whole.items():
            path.write_bytes(content)


def test_the_files_are_read_when_nothing_is_wrong(run: Path) -> None:
    report.write_report(run)
    read_as_evaluate(run)
