"""What every command shares: flags for recipe fields, and errors as one line with an exit status."""

import argparse
import contextlib
import dataclasses
import errno
import io
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn, TextIO, cast, get_type_hints

from shortstack.distillation import RunError
from shortstack.distillation.recipe import Recipe, check_set_name, find_recipe, read_recipe, set_field
from shortstack.model.files import InputError, first_line, is_out_of_memory

# -- errors ----------------------------------------------------------------------------------------------------------


class Output:
    """A stdout whose loss does not end a run: once `| head` has closed it or its disk is full, output is dropped."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        self._try(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            with contextlib.suppress(OSError):  # stderr may be the same pipe
                print(f"note: stdout is lost ({error.strerror}); going on without it", file=sys.stderr, flush=True)
            nowhere = os.open(os.devnull, os.O_WRONLY)  # also for what is still in the buffer
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)


def run_command(main: Callable[[], None]) -> None:
    """Run a script's `main` and turn errors that users can fix into one line on stderr and an exit status."""
    if signal.getsignal(signal.SIGINT) is interrupted_in_imports:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal or pipe of ASCII shows other letters as \\xe9
        sys.stdout.reconfigure(errors="backslashreplace")
        sys.stdout = cast(TextIO, output := Output(sys.stdout))
        try:
            return run_command(main)
        finally:
            output.flush()
            sys.stdout = cast(TextIO, output.stream)
    try:
        main()
    except InputError as error:
        status, message = 2, str(error)
    except RunError as error:
        status, message = 1, str(error)
    except KeyboardInterrupt:
        status, message = 130, "interrupted"
    except OSError as error:
        status, message = 1, explain_os_error(error)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        what = "train: raise --gradient-accumulation, or lower --batch-size or --max-length; bench: lower --batch-size"
        status, message = 1, f"out of memory: {what} ({first_line(error)})"
    else:
        return
    print(f"error: {printable(message)}", file=sys.stderr, flush=True)
    sys.exit(status)


def interrupted_in_imports(number: int, frame: Any) -> NoReturn:
    """What Ctrl-C does while a script imports, where a KeyboardInterrupt would print a long traceback."""
    os.write(2, b"error: interrupted\n")
    os._exit(130)


def end_at_once(error: BaseException) -> NoReturn:
    """Report an error as `run_command` does and end the process at once, without any clean-up."""

    def fail() -> None:
        raise error

    status: object = 1
    try:
        run_command(fail)
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 1)


def printable(text: str) -> str:
    """Text from elsewhere on one line, safe to show in a terminal: control characters are spelled out, as \\x1b."""
    line = " ".join(text.split())
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)


def explain_os_error(error: OSError) -> str:
    """Say which file an operating-system error is about and what to do."""
    where = error.filename or "a file"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{where}: no space left to write; free some or choose another --output, then run again"
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return f"{where}: not writable or readable ({error.strerror}); choose another --output, or allow it"
    return f"{where}: {error.strerror or error}"


# -- flags -----------------------------------------------------------------------------------------------------------


# The flags of recipe fields by what they are about, as --help shows them.
GROUPS = {
    "the text": "sentences reading general sampling max_sentences evaluation_sentences max_length "
    "labels label_precision shard_size window_shards",
    "the student": "teacher teacher_vectors start_from layers vocabulary intermediate_size dimensions pooling",
    "training": "batch_size gradient_accumulation learning_rate warmup_ratio epochs weight_decay max_grad_norm "
    "dropout loss seed max_skipped_steps",
    "evaluation": "sts retrieval evaluate_every metric_for_best_model",
    "the run and the machine": "name output device precision tokens_per_batch log_every report_to save_every timeout",
}


def add_recipe_flags(parser: argparse.ArgumentParser) -> None:
    """Add one flag for each recipe field; its value is used instead of the recipe file's."""
    fields = {item.name: item for item in dataclasses.fields(Recipe)}
    for title, names in GROUPS.items():
        group = parser.add_argument_group(title)
        for name in names.split():
            add_recipe_flag(group, fields.pop(name))


def add_recipe_flag(group: argparse._ActionsContainer, item: dataclasses.Field[Any]) -> None:
    """Add the flag of a recipe field, with its default in the help."""
    flag, kind = "--" + item.name.replace("_", "-"), get_type_hints(Recipe)[item.name]
    default = getattr(Recipe(), item.name)
    text = item.metadata["help"].replace("%", "%%")
    text += "" if default in ("", [], {}) else f" (recipe's default: {default})"
    if kind in (list[str], dict[str, str]):
        metavar = "SOURCE" if kind == list[str] else "NAME=SOURCE"
        group.add_argument(flag, nargs="+", action="extend", metavar=metavar, help=text)
    else:
        group.add_argument(flag, type=kind if kind in (int, float) else str, metavar=item.name.upper(), help=text)


def recipe_from_arguments(arguments: argparse.Namespace, recipe_path: str, resume: bool = False) -> Recipe:
    """The recipe file, given by its path or name, with the flags' values in place of its own, checked.

    With `resume`, the recipe of a run directory is that of the run there, also where it was moved.

    Raises:
        InputError: anything wrong in the file or the flags.
    """
    path = find_recipe(recipe_path)
    recipe = read_recipe(path)
    directory = path.resolve().parent
    if resume and (directory / "checkpoints").is_dir() and directory != recipe.directory.resolve():
        recipe.output, recipe.name = str(directory.parent), directory.name
    for item in dataclasses.fields(Recipe):
        value = getattr(arguments, item.name)
        if value is None:
            continue
        if item.name in ("sts", "retrieval"):
            value = named_sources(value, f"--{item.name}")
        if item.name == "vocabulary" and re.fullmatch(r"\d{1,18}", value, re.ASCII):
            value = int(value)
        if item.name == "layers" and re.fullmatch(r"[\d,\s-]+", value):
            try:
                value = [int(number) for number in value.split(",")]
            except ValueError:
                raise InputError(f"--layers: {value!r} is not a list of numbers such as 0,2,5") from None
        set_field(recipe, item.name, value, "--" + item.name.replace("_", "-"))
    recipe.check()
    return recipe


def named_sources(values: list[str], flag: str) -> dict[str, str]:
    """["sts-dev=PATH", ...], given with `flag`, to {"sts-dev": "PATH", ...}; a directory may stand for itself.

    Raises:
        InputError: not of that form, a name that can't be used, or one given twice.
    """
    sources: dict[str, str] = {}
    for value in values:
        name, _, source = value.partition("=")
        if not source and os.path.isdir(value):  # as the shell writes out assets/retrieval/*
            name, source = os.path.basename(os.path.normpath(value)), value
        if not source:
            raise InputError(f"{flag}: {value!r} is not of the form NAME=SOURCE")
        check_set_name(name, flag)
        if name in sources:
            raise InputError(f"{flag}: the name {name!r} is given twice")
        sources[name] = source
    return sources
