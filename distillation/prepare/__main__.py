"""Fetch the embedded default into assets/: a small teacher, text to train on, and sets to judge by.

python -m distillation.prepare                  # into assets/
python -m distillation.prepare --assets DIR
python -m distillation.prepare --teacher all-mpnet-base-v2    # also this larger teacher
python -m distillation.prepare --text long                    # also text for longer training, 280 MB to download
"""

import argparse
import signal
import sys
from pathlib import Path

from shortstack.distillation.command_line import OneLineParser, run_command
from shortstack.distillation.prepare.fetch import prepare
from shortstack.distillation.prepare.mpnet import NAME, prepare_mpnet


def main() -> None:
    parser = OneLineParser(
        prog="python -m distillation.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--assets", type=Path, default=Path("assets"), metavar="DIR", help="where to (default: assets)")
    parser.add_argument("--teacher", choices=[NAME], help="a further teacher to fetch, 440 MB")
    parser.add_argument("--text", choices=["default", "long"], default="default", help="long: more text, 280 MB")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what was begun is tidied up
    prepare(arguments.assets)
    if arguments.text == "long":
        from shortstack.distillation.prepare.long import prepare_long  # reads Parquet's kinds of compression, and YAML

        prepare_long(arguments.assets)
    if arguments.teacher:
        prepare_mpnet(arguments.assets)


if __name__ == "__main__":
    run_command(main)
