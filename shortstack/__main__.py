"""One command for all: `shortstack train`, `shortstack evaluate` and so on, the same as the scripts of a checkout."""

import importlib
import sys
from functools import partial

from shortstack.distillation.command_line import run_command
from shortstack.distillation.flags import COMMANDS, answer_first

USAGE = "\n".join(
    [
        "usage: shortstack COMMAND ...      (shortstack COMMAND --help says more)",
        "",
        *(f"  {name:<10} {text}" for name, (_, _, text) in COMMANDS.items()),
    ]
)


def main() -> None:
    """Run the command that the first argument names; exit status 2 where there is none of that name."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        return run_command(partial(print, USAGE))
    if name == "--version":
        print(importlib.import_module("shortstack").__version__)
        return
    if name not in COMMANDS:
        sys.exit(_wrong(f"there is no command {name!r}; it is one of {', '.join(COMMANDS)}"))
    sys.argv = [f"shortstack {name}", *arguments]
    answer_first(name)
    try:
        command = importlib.import_module(f"shortstack.{COMMANDS[name][0]}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "shortstack":
            raise
        sys.exit(_wrong(f"{error.name} is not installed; it comes with this package's extra [train]"))
    run_command(command.main)


def _wrong(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
