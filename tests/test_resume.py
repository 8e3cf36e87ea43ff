"""A run that was stopped, killed or taken up again ends where it would have ended undisturbed."""

import functools
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import hooks
import pytest
from processes import ENVIRONMENT, LIMIT, TRAIN, Forked, RunDirectory, assert_same_run, command, train, write_recipe
from tiny import contents

SETTINGS = {
    "fp32": {"precision": "fp32", "dropout": 0.1, "gradient_accumulation": 2},
    "bf16": {"precision": "bf16", "dropout": 0.1},
}
STEPS = 80


@pytest.fixture(scope="module", params=SETTINGS)
def recipe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    directory = tmp_path_factory.mktemp(f"resume-{request.param}")
    return write_recipe(directory, tiny_model_dir, sentences=200, epochs=10, save_every=2, evaluate_every=7,
                        **SETTINGS[request.param])  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(recipe: Path) -> RunDirectory:
    ended = train(recipe, "--output", str(recipe.parent / "undisturbed"))
    assert ended.status == 0, ended.err
    run = RunDirectory(recipe.parent / "undisturbed" / "tiny")
    assert list(run.logged("loss")) == list(range(10, STEPS + 1, 10))
    return run


# -- SIGKILL ---------------------------------------------------------------------------------------------------------


def moments(seed: int) -> list[functools.partial[None]]:
    """20 moments to be killed at: while labelling, while files are being written, and anywhere in a step.

    Threads work ahead in these runs, as they do beside a GPU; in the undisturbed one none does.
    """
    draw = random.Random(seed)
    kills = [
        functools.partial(hooks.kill_after_calls, "label_corpus", draw.randrange(1, 3000)),
        functools.partial(hooks.kill_while_writing, "evaluation", draw.random()),
        functools.partial(hooks.kill_while_writing, "00000", draw.random()),
        functools.partial(hooks.kill_while_writing, "best", draw.random()),
    ]
    for number in range(20 - len(kills)):
        anywhere = functools.partial(hooks.kill_after_calls, "train_step", draw.randrange(1, 60_000))
        in_best = functools.partial(hooks.kill_while_writing, "best", draw.random())
        in_last = functools.partial(hooks.kill_while_writing, "last", draw.random(), earlier=draw.randrange(1, 6))
        kills.append([anywhere, in_last, anywhere, in_best][number % 4])
    return [functools.partial(hooks.overlapping, kill) for kill in kills]


def test_killed_twenty_times(recipe: Path, undisturbed: RunDirectory) -> None:
    run = RunDirectory(recipe.parent / "runs" / "tiny")
    half_written, reached = 0, set()
    for kill in moments(seed=list(SETTINGS).index(recipe.parent.name.split("-")[1][:4])):
        ended = train(recipe, "--resume", before=kill)
        assert ended.status == -signal.SIGKILL, (kill, ended)
        half_written += len(run.leftovers())
        reached |= {line for line in ended.out.splitlines() if line.startswith("going on after step")}
    assert half_written >= 5  # the kills did hit checkpoints while they were written
    assert len(reached) >= 5, reached  # and the run went on in between
    ended = train(recipe, "--resume")
    assert ended.status == 0, ended.err
    assert_same_run(run, undisturbed)


@pytest.mark.long
def test_killed_by_another_at_any_time(recipe: Path, undisturbed: RunDirectory) -> None:
    """The same from outside, at times that no one chose."""
    draw = random.Random(0)
    name = "outside"
    for _ in range(20):
        process = Forked(recipe, "--resume", "--name", name).process
        process.join(draw.uniform(0.3, 1.2))
        process.kill()
        process.join()
    ended = train(recipe, "--resume", "--name", name)
    assert ended.status == 0, ended.err
    assert_same_run(RunDirectory(recipe.parent / "runs" / name), undisturbed)


# -- SIGTERM and Ctrl-C ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> tuple[Path, RunDirectory]:
    """A recipe, and its run left alone."""
    recipe = write_recipe(tmp_path_factory.mktemp("stop"), tiny_model_dir, dropout=0.1, epochs=3, save_every=1000)
    assert train(recipe, "--output", str(recipe.parent / "undisturbed")).status == 0
    return recipe, RunDirectory(recipe.parent / "undisturbed" / "tiny")


STOPS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1]


@pytest.mark.parametrize("number", STOPS, ids=lambda number: number.name)
def test_a_stop_is_saved_and_says_how_to_go_on(plain: tuple[Path, RunDirectory], number: signal.Signals) -> None:
    recipe, undisturbed = plain
    stop = functools.partial(hooks.overlapping, functools.partial(hooks.signal_at_step, number, 13))
    ended = train(recipe, "--name", number.name, before=stop)
    run = RunDirectory(recipe.parent / "runs" / number.name)
    command = f"python {TRAIN} {run.path}/recipe.toml --resume"
    assert ended.status == 1
    assert ended.error == f"error: stopped after step 13 of 30, which is saved; go on with: {command}"
    assert not (run.path / "model").exists()
    if number == signal.SIGTERM:  # the command as it is printed
        printed = [sys.executable, *shlex.split(command)[1:]]  # with this Python: another may be first on the path
        subprocess.run(printed, env=os.environ | ENVIRONMENT, check=True, capture_output=True, timeout=LIMIT)
    else:
        again = train(run.path / "recipe.toml", "--resume")
        assert again.status == 0 and "going on after step 13 of 30" in again.out
    assert_same_run(run, undisturbed)


def test_interrupted_while_importing_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n")
    environment = ENVIRONMENT | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ENVIRONMENT['PYTHONPATH']}"}
    ended = subprocess.run([sys.executable, TRAIN], env=os.environ | environment, capture_output=True, timeout=LIMIT)
    assert (ended.returncode, ended.stderr) == (130, b"error: interrupted\n")


@pytest.mark.parametrize("lost", ["closed", "full"])
def test_a_lost_stdout_ends_no_command(lost: str) -> None:
    program = """
        from shortstack.distillation.command_line import run_command

        def main():
            for _ in range(3):
                print("much to say" * 1000, flush=True)
            print("still in the buffer")

        run_command(main)
    """
    read, write = os.pipe()
    os.close(read)
    stdout = write if lost == "closed" else os.open("/dev/full", os.O_WRONLY)
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=Path(TRAIN).parent, env=os.environ | ENVIRONMENT,
        stdout=stdout, stderr=subprocess.PIPE, timeout=LIMIT, text=True,
    )  # fmt: skip
    assert ended.returncode == 0
    assert ended.stderr.startswith("note: stdout is lost (") and ended.stderr.count("\n") == 1


def test_a_second_signal_stops_at_once(plain: tuple[Path, RunDirectory]) -> None:
    recipe, undisturbed = plain
    before = functools.partial(hooks.signal_at_step, signal.SIGINT, 13, times=2)
    ended = train(recipe, "--name", "twice", "--save-every", "10", before=before)
    run = RunDirectory(recipe.parent / "runs" / "twice")
    assert ended.status == 1
    assert ended.error.startswith("error: stopped; what is finished is kept; go on with: python")
    again = train(run.path / "recipe.toml", "--resume")
    assert again.status == 0 and "going on after step 10 of 30" in again.out
    assert_same_run(run, undisturbed)


def test_after_an_error_in_a_step_a_signal_stops_at_once(tmp_path: Path) -> None:
    """In a process of its own: OpenVINO leaves this one a stack for signal handlers that it has freed (2026.4)."""
    program = """
        import signal, sys
        import torch
        from shortstack.distillation.ranks import Ranks
        from shortstack.distillation.recipe import Recipe
        from shortstack.distillation.run import Run

        run = Run(Recipe(name="r", output=sys.argv[1]), Ranks(0, 1, torch.device("cpu")), resume=False)
        try:
            with run.taking_steps():
                raise ValueError
        except ValueError:
            pass
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            print("stopped")
    """
    ended = command("-c", textwrap.dedent(program), tmp_path)
    assert ended.status == 0 and ended.out == "stopped\n", ended


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_stop_while_labelling_keeps_the_finished_shards(
    tmp_path: Path, tiny_model_dir: Path, number: signal.Signals
) -> None:
    recipe = write_recipe(tmp_path, tiny_model_dir)
    ended = train(recipe, before=functools.partial(hooks.signal_while_labelling, number))
    assert ended.status == 1
    assert ended.error == "error: stopped; what is finished is kept; go on with: the same command"
    [shard] = (tmp_path / "runs" / "labels").rglob("*.safetensors")
    written = shard.stat().st_mtime_ns
    assert train(recipe).status == 0
    assert shard.stat().st_mtime_ns == written
    assert RunDirectory(tmp_path / "runs").leftovers() == []


# -- what may go on --------------------------------------------------------------------------------------------------


def test_a_finished_run_stays_as_it_is(plain: tuple[Path, RunDirectory]) -> None:
    recipe, undisturbed = plain
    output = str(undisturbed.path.parent)
    before = (undisturbed.path / "log.jsonl").read_text()
    assert train(recipe, "--resume", "--output", output).status == 0
    assert (undisturbed.path / "log.jsonl").read_text() == before
    assert_same_run(RunDirectory(undisturbed.path), undisturbed)


def test_resume_without_a_run_starts_one(plain: tuple[Path, RunDirectory]) -> None:
    recipe, undisturbed = plain
    assert train(recipe, "--resume", "--name", "new").status == 0
    assert_same_run(RunDirectory(recipe.parent / "runs" / "new"), undisturbed)


@pytest.mark.parametrize(
    "change",
    [["--learning-rate", "2e-3"], ["--epochs", "4"], ["--seed", "1"], ["--layers", "0,5"], ["--max-sentences", "100"]],
    ids=lambda change: change[0],
)
def test_other_settings_are_refused(plain: tuple[Path, RunDirectory], change: list[str]) -> None:
    recipe, undisturbed = plain
    last = undisturbed.path / "checkpoints" / "last.safetensors"
    before = contents(undisturbed.path)
    ended = train(recipe, "--resume", "--output", str(undisturbed.path.parent), *change)
    assert ended.status == 2
    assert ended.error == (
        f"error: {last}: is of a run with other settings; give another --name, or run without --resume"
    )
    assert contents(undisturbed.path) == before  # its recipe too, which would go on with it


def test_a_run_that_was_moved_is_resumed_where_it_is(tmp_path: Path, tiny_model_dir: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_model_dir)
    assert train(recipe).status == 0
    run = RunDirectory(tmp_path / "runs" / "tiny")
    moved = RunDirectory(run.path.rename(tmp_path / "runs" / "tiny.1"))
    (moved.path / "evaluation.json").unlink()
    ended = train(moved.path / "recipe.toml", "--resume")
    assert ended.status == 0 and "going on after step" in ended.out
    assert (moved.path / "evaluation.json").exists() and not run.path.exists()


def test_labels_are_known_by_what_they_are_not_by_where(tmp_path: Path, tiny_model_dir: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_model_dir)
    assert train(recipe, "--labels", str(tmp_path / "here")).status == 0
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert train(recipe, "--resume", "--labels", str(tmp_path / "there")).status == 0
    text = tmp_path / "text.txt"
    text.write_text(text.read_text().replace("The", "A", 1))
    ended = train(recipe, "--resume", "--labels", str(tmp_path / "here"))
    assert ended.status == 2 and "is of a run on other text or of another teacher" in ended.error
