"""Fetch what the default needs into assets/: a small teacher, text to train on, and sets to judge by.

python -m distillation.prepare                  # into assets/
python -m distillation.prepare --assets DIR
python -m distillation.prepare --teacher all-mpnet-base-v2    # also this larger teacher
python -m distillation.prepare --text long                    # also text for longer training, 280 MB to download
"""

from shortstack.distillation.flags import answer_first, parse_arguments

if __name__ == "__main__":
    answer_first("prepare")  # --help and a wrong flag end here, before the seconds that the imports below take

import signal
import sys

from shortstack.distillation.command_line import run_command
from shortstack.distillation.prepare.fetch import prepare
from shortstack.distillation.prepare.mpnet import prepare_mpnet


def main() -> None:
    arguments = parse_arguments("prepare")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that temporary files are removed
    prepare(arguments.assets)
    if arguments.text == "long":
        from shortstack.distillation.prepare.long import prepare_long  # reads Parquet's kinds of compression, and YAML

        prepare_long(arguments.assets)
    if arguments.teacher:
        prepare_mpnet(arguments.assets)


if __name__ == "__main__":
    run_command(main)
