"""Fetch the embedded default into assets/: a small teacher, text to train on, and similarity judgements.

python -m distillation.prepare                  # into assets/
python -m distillation.prepare --assets DIR
"""

import argparse
from pathlib import Path

from distillation.command_line import OneLineParser, run_command
from distillation.prepare.fetch import prepare


def main() -> None:
    parser = OneLineParser(
        prog="python -m distillation.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--assets", type=Path, default=Path("assets"), metavar="DIR", help="where to (default: assets)")
    prepare(parser.parse_args().assets)


if __name__ == "__main__":
    run_command(main)
