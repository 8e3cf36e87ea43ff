"""Where a run's curves go beside log.jsonl: TensorBoard, Weights & Biases, or a function of the caller's."""

import importlib.util
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shortstack.model.files import InputError, write_text

# Takes a log line, {"step": n, "loss": f, ...}, in which a figure that is not finite is None.
Callback = Callable[[dict[str, Any]], None]
Tracker = tuple[Callback, Callable[[], None]]  # the second ends it


def trackers_of(report_to: str) -> list[str]:
    """The recipe's field as names: "auto" is TensorBoard where it is installed, "none" nothing.

    Raises:
        InputError: an unknown name, or a tracker that is not installed.
    """
    if report_to == "auto":
        return ["tensorboard"] if importlib.util.find_spec("tensorboard") else []
    names = [] if report_to == "none" else report_to.split(",")
    for name in names:
        if name not in TRACKERS:
            raise InputError(f"report_to: {name!r} is not one of auto, none, {', '.join(TRACKERS)}")
        if importlib.util.find_spec(name) is None:
            raise InputError(f"report_to: {name} is not installed; pip install {name}")
    return names


def tensorboard_curves(directory: Path, settings: dict[str, Any], step: int) -> Tracker:
    """Sends log lines to TensorBoard; later points of an earlier attempt are dropped where the run resumes."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1)

    def log(line: dict[str, Any]) -> None:
        for key, value in line.items():
            if key != "step" and value is not None:
                writer.add_scalar(key, value, line["step"])
        writer.flush()  # so that a run that is killed leaves whole curves

    return log, writer.close


def wandb_curves(directory: Path, settings: dict[str, Any], step: int) -> Tracker:
    """Sends log lines to Weights & Biases."""
    import wandb

    # A resumed run continues its curves; another run of the same name gets its own.
    name, kept = directory.name, directory / "wandb.txt"
    if step < 0 or not kept.exists():
        write_text(kept, f"{name}-{secrets.token_hex(4)}")
    own = kept.read_text(encoding="utf-8")
    run = wandb.init(project="shortstack", name=name, id=own, dir=str(directory), config=settings, resume="allow")

    def log(line: dict[str, Any]) -> None:
        figures = {key: value for key, value in line.items() if key != "step" and value is not None}
        run.log(figures, step=line["step"])

    return log, run.finish


# By name: what makes a tracker of the run's directory, its settings and the step after which it resumes.
TRACKERS = {"tensorboard": tensorboard_curves, "wandb": wandb_curves}
