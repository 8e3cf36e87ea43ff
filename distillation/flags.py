"""The flags of every command. No torch here: `--help` and a wrong flag are answered before it is imported."""

import argparse
import ast
import difflib
import importlib.util
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from shortstack.distillation.command_line import add_recipe_flags, interrupted_in_imports, run_command
from shortstack.model.files import InputError

# What other tools call our flags. Where several flags have a name in common, the first that the command has is meant.
OTHER_NAMES = {
    "--learning-rate": "lr, max-lr, peak-lr",
    "--batch-size": "bs, bsz, per-device-train-batch-size, train-batch-size",
    "--epochs": "num-train-epochs, num-epochs, n-epochs, epoch",
    "--sentences": "data, dataset, dataset-name, train-file, train-data, corpus, text, texts, input, documents, docs",
    "MODEL": "model, model-name, model-name-or-path, student, student-model",
    "--teacher": "model, model-name, model-name-or-path, base-model, teacher-model",
    "--output": "output-dir, out, outdir, save-dir, output-path",
    "--name": "run-name, run, experiment",
    "--max-length": "max-seq-length, max-seq-len, seq-length, max-tokens",
    "--max-sentences": "max-samples, max-train-samples, limit, num-sentences, samples",
    "--count": "max-samples, limit, num-sentences, samples, max-sentences",
    "--layers": "num-layers, n-layers, num-hidden-layers, layer",
    "--dimensions": "dim, dims, embedding-dim, hidden-size, truncate-dim",
    "--precision": "fp16, bf16, fp32, amp, mixed-precision, dtype",
    "--device": "gpu, cuda, cpu, no-cuda, use-cpu",
    "--warmup-ratio": "warmup, warmup-steps",
    "--weight-decay": "wd",
    "--evaluate-every": "eval-steps, eval-every, evaluation-steps",
    "--save-every": "save-steps, checkpoint-every",
    "--log-every": "logging-steps, log-steps",
    "--evaluation-sentences": "eval-sentences, validation-split, eval-size",
    "--gradient-accumulation": "gradient-accumulation-steps, grad-accum, accumulation-steps",
    "--max-grad-norm": "clip, grad-clip, gradient-clip",
    "--start-from": "student, init-from, student-model, checkpoint",
    "--resume": "resume-from-checkpoint, continue",
    "--report-to": "wandb, tensorboard, logger",
    "RECIPE": "config, recipe, config-file",
    "RUN": "run, run-dir, name, model",
}


class OneLineParser(argparse.ArgumentParser):
    """argparse, but a wrong argument is one line and status 2, and it suggests what was probably meant."""

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ")
        flags = [word.partition("=")[0] for word in unknown.split() if word.startswith("-")]
        if unknown == message or not flags:
            raise InputError(f"{message}; see --help")
        meant = self._meant_by(flags[0])
        raise InputError(f"there is no flag {flags[0]}" + (f"; did you mean {meant}?" if meant else "; see --help"))

    def _meant_by(self, flag: str) -> str | None:
        """The flag or argument of this command that an unknown flag is probably meant to be."""
        name = flag.lstrip("-").replace("_", "-")
        known = [*self._option_string_actions, *(action.metavar for action in self._get_positional_actions())]
        for ours, others in OTHER_NAMES.items():
            if ours in known and name in others.split(", "):
                return ours if ours.startswith("-") else f"{ours}, given without a flag"
        close = difflib.get_close_matches(f"--{name}", self._option_string_actions, n=1, cutoff=0.7)
        return close[0] if close else None


def parse_arguments(command: str, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of a command, sys.argv's unless others are given."""
    module, add_flags, _ = COMMANDS[command]
    prog = f"python -m {module.removesuffix('.__main__')}" if Path(sys.argv[0]).name == "__main__.py" else None
    parser = OneLineParser(
        prog=prog, description=_docstring(module), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_flags(parser)
    return parser.parse_args(arguments)


def answer_first(command: str) -> None:
    """End the process here for `--help`, for an argument that is wrong, and where torch is not installed.

    From here on until `run_command`, Ctrl-C is one line too.
    """

    def answer() -> None:
        parse_arguments(command)
        if importlib.util.find_spec("torch") is None:
            raise InputError(
                f"torch is not installed in {sys.prefix}; in a clone run `make install` once, then "
                "`source .venv/bin/activate`; elsewhere install it with the extra [train]"
            )

    run_command(answer)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupted_in_imports)


def _docstring(module: str) -> str | None:
    """A module's docstring, without the import."""
    spec = importlib.util.find_spec(f"shortstack.{module}")
    assert spec is not None and spec.origin is not None
    return ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))


# -- the commands ----------------------------------------------------------------------------------------------------


def add_train_flags(parser: argparse.ArgumentParser) -> None:
    recipe_help = "recipe file, or the name of one in recipes/ (default: minilm-3)"
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", default="minilm-3", help=recipe_help)
    parser.add_argument("--resume", action="store_true", help="resume from the run's last checkpoint, if there is one")
    add_recipe_flags(parser)


def add_evaluate_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", type=model_of, help="directory of a model or a run, or a Hub name")
    parser.add_argument(
        "--teacher", type=model_of, help="directory or Hub name (default: the teacher of the run, 'none' for none)"
    )
    sts_help = "STS sets (default: the run's)"
    parser.add_argument("--sts", nargs="+", action="extend", metavar="NAME=SOURCE", help=sts_help)
    retrieval_help = "a directory with queries, documents and relevance, or parallel:FILE,FILE,... (default: the run's)"
    parser.add_argument("--retrieval", nargs="+", action="extend", metavar="NAME=SOURCE", help=retrieval_help)
    text_help = "text for the negative MSE (default: the run's held-out text)"
    parser.add_argument("--sentences", nargs="+", action="extend", metavar="SOURCE", help=text_help)
    index_help = "vectors of an existing index: .npy, .safetensors, .parquet, or FILE.parquet:TEXT,VECTOR"
    parser.add_argument("--index", metavar="FILE", help=index_help)
    parser.add_argument("--texts", metavar="FILE", help="with --index: its texts in the same order, one a line or row")
    parser.add_argument("--queries", metavar="FILE", help="with --index: what users ask (default: made of its texts)")
    parser.add_argument("--precision", default="auto", help="auto, fp32, bf16, fp16 or int8 (default: auto)")
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--output", type=Path, help="where to write evaluation.json (default: the run's directory)")


def add_bench_flags(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what is timed")
    model_help = "student: directory of a model or a run, or a Hub name"
    what.add_argument("model", nargs="?", type=model_of, metavar="MODEL", help=model_help)
    what.add_argument(
        "--teacher", type=model_of, metavar="T", help="directory or Hub name (default: the run's teacher)"
    )
    shapes = "random weights instead: bert-tiny, minilm-l6, bert-base, bert-large, or a config.json"
    what.add_argument("--shape", help=shapes)
    what.add_argument("--layers", type=whole_numbers, help="with --shape: layers of teacher and student, such as 24,8")
    what.add_argument("--peers", action="store_true", help="also time other tools, and training beside theirs")
    what.add_argument("--latency", action="store_true", help="also time one query at a time")
    data = parser.add_argument_group("the text")
    text_help = "text (default: what the run held out)"
    data.add_argument("--sentences", nargs="+", action="extend", metavar="SOURCE", help=text_help)
    data.add_argument("--count", type=whole_number, default=1000, help="sentences to encode at most (default: 1000)")
    data.add_argument("--mean-tokens", type=whole_number, default=16, help="in a random sentence (default: 16)")
    how = parser.add_argument_group("how")
    how.add_argument("--precision", nargs="+", default=["auto"], help="auto, fp32, bf16, fp16, int8, or all of them")
    how.add_argument(
        "--batch-size",
        type=whole_number,
        help="sentences (default: 256, on a GPU 4096; to train 64, on a GPU also 512)",
    )
    how.add_argument("--repeats", type=whole_number, default=5, help="timed turns (default: 5)")
    how.add_argument("--queries", type=whole_number, default=130, help="with --latency: of each length (default: 130)")
    how.add_argument("--steps", type=whole_number, default=100, help="with --peers: optimizer steps (default: 100)")
    how.add_argument("--device", help="such as cpu or cuda:1 (default: a GPU if there is one)")
    how.add_argument("--output", type=Path, help="where to write (default: the run's directory, or here)")


def add_report_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", type=run_of, help="run directory, such as runs/minilm-3")
    parser.add_argument("--push-to-hub", metavar="NAME", help="publish the student as OWNER/NAME on the Hub")
    parser.add_argument("--frontier", metavar="PNG", type=Path, help="draw the students of many runs in one picture")


def add_export_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", type=model_of, help="directory of a model or a run, or a Hub name")
    parser.add_argument("--output", type=Path, help="directory to write into (default: MODEL; router beside MODEL)")
    parser.add_argument(
        "--router", action="store_true", help="write one model: student for queries, teacher for documents"
    )
    parser.add_argument(
        "--teacher", type=model_of, help="with --router: directory or Hub name (default: the run's teacher)"
    )


def add_prepare_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--assets", type=Path, default=Path("assets"), metavar="DIR", help="written to (default: assets)"
    )
    parser.add_argument("--teacher", choices=["all-mpnet-base-v2"], help="a further teacher to fetch, 440 MB")
    parser.add_argument("--text", choices=["default", "long"], default="default", help="long: more text, 280 MB")


# Each command's module in this package, what adds its flags, and what it is for.
COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], Any], str]] = {
    "prepare": (
        "distillation.prepare.__main__", add_prepare_flags, "fetch the default's teacher and text into assets/"
    ),
    "train": ("train", add_train_flags, "train a student, evaluate and save it in runs/NAME"),
    "evaluate": ("evaluate", add_evaluate_flags, "what a student keeps: STS, search, distance to the teacher"),
    "bench": ("bench", add_bench_flags, "how fast it is: sentences a second"),
    "report": ("distillation.report.__main__", add_report_flags, "figure, page and model card of a run"),
    "export": ("distillation.export", add_export_flags, "ONNX and OpenVINO files of a model"),
}  # fmt: skip


def model_of(name: str) -> str:
    """For argparse: a model's directory or Hub name; of a run directory, its student."""
    if not (Path(name) / "recipe.toml").is_file():
        return name
    model = Path(name) / "model"
    if not model.is_dir():
        raise argparse.ArgumentTypeError(
            f"{name} has no student yet; finish the run with `python train.py {name} --resume`"
        )
    return str(model)


def run_of(name: str) -> Path:
    """For argparse: a run directory; of a student's directory, the run that made it."""
    above = Path(name).parent
    return above if not (Path(name) / "recipe.toml").is_file() and (above / "recipe.toml").is_file() else Path(name)


def whole_numbers(text: str) -> list[int]:
    """For argparse: "24,8" to [24, 8], each at least 1."""
    return [whole_number(part) for part in text.split(",")]


def whole_number(text: str) -> int:
    """For argparse: a number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)
