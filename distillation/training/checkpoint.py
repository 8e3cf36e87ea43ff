"""Checkpoints: everything needed to resume exactly, as one safetensors file, with no pickle.

What is not in the file follows from the step: the learning rate, the order of the data and the dropout of each step are
functions of the recipe's seed and the step's number.
"""

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shortstack.distillation.data.labels import Labels
from shortstack.distillation.recipe import Recipe
from shortstack.distillation.run import Run
from shortstack.distillation.training.meter import Meter
from shortstack.distillation.training.optimizer import StudentOptimizer
from shortstack.model.files import InputError
from shortstack.model.tensors import load_tensors, save_tensors

# What may differ when a run is resumed: nothing that decides which steps are taken.
FREE_TO_CHANGE = (
    "device", "output", "labels", "tokens_per_batch", "log_every", "report_to", "save_every",
    "max_skipped_steps", "timeout", "name",
)  # fmt: skip


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        step: optimizer steps done.
        best_step, best_metric: the best evaluation so far and its step; -1 before the first.
        skipped, skipped_in_a_row: steps skipped because of a gradient that was not finite: in all, and in a row up
            to now.
        loss_sum, losses: sum and number of the losses since the last log line.
        total: steps of the whole run.
    """

    step: int = 0
    best_step: int = -1
    best_metric: float = float("-inf")
    skipped: int = 0
    skipped_in_a_row: int = 0
    loss_sum: float = 0.0
    losses: int = 0
    total: int = 0

    def is_due(self, every: int) -> bool:
        """Whether something that happens every so many steps, and after the last step, happens now."""
        return self.step % every == 0 or self.step == self.total


class Checkpoints:
    """A run's three files: the last two checkpoints, to resume from, and the weights of the best step so far.

    Attributes:
        last, earlier, best: the files. A damaged or lost last checkpoint costs the steps since the earlier one.
    """

    def __init__(self, student: nn.Module, optimizer: StudentOptimizer, settings: str, run: Run) -> None:
        self.last, self.earlier, self.best = (
            run.directory / "checkpoints" / f"{name}.safetensors" for name in ("last", "earlier", "best")
        )
        self._student, self._optimizer, self._settings = student, optimizer, settings
        self._run, self._ranks = run, run.ranks
        self._last_is_whole = True

    def resume(self, total: int) -> Progress:
        """Load the last checkpoint that is whole, if there is one; returns the progress of the run of `total` steps.

        Raises:
            InputError: all are damaged, the run had other settings, or some ranks see the file and others don't.
        """
        damage = ""
        for path in (self.last, self.earlier):
            if not self._all_see(path):
                continue
            try:
                tensors, state = load_tensors(path)
            except InputError as error:
                tensors, state, damage = {}, None, damage or str(error).partition("; ")[0]
            if self._ranks.all(state is not None):
                self._last_is_whole = path == self.last
                return self._go_on(path, tensors, state, total)
            if self._ranks.is_main and path == self.last:
                print(f"{damage or f'{path}: damaged for another rank'}; taking the checkpoint before it", flush=True)
        if damage:
            raise InputError(f"{damage}; start again without --resume")
        return Progress(total=total)

    def _all_see(self, path: Path) -> bool:
        """Whether the file is there; InputError unless all ranks get the same answer."""
        exists = path.exists()
        if self._ranks.any(exists) and not self._ranks.all(exists):
            sees = "sees it, another does not" if exists else "does not see it, another does"
            raise InputError(
                f"{path}: rank {self._ranks.rank} {sees}; --output must be on a file system that all hosts share"
            )
        return exists

    def _go_on(self, path: Path, tensors: dict[str, torch.Tensor], state: Any, total: int) -> Progress:
        """Continue from a checkpoint's content."""
        progress = restore(path, (tensors, state), self._student, self._optimizer, self._settings)
        self._optimizer.refresh()
        progress.total = total
        self._optimizer.skips.copy_(torch.tensor([progress.skipped, progress.skipped_in_a_row]))
        if self._ranks.is_main:
            print(f"going on after step {progress.step} of {total}", flush=True)
        if not self._best_is_whole(progress.best_step):
            progress.best_step, progress.best_metric = -1, -math.inf
        return progress

    def _best_is_whole(self, step: int) -> bool:
        """Whether the best weights so far are there and whole on every rank; prints a line if they are not.

        They may be of a later step: a run that is killed between the two files takes that step again.
        """
        try:
            if read_weights(self.best, self._settings)[1] < step:
                raise InputError(f"{self.best}: is of an earlier step")
        except InputError as error:
            if self._ranks.is_main:
                print(f"{str(error).partition('; ')[0]}; the best step is chosen among those from here on")
            return self._ranks.all(False)
        return self._ranks.all(True)

    def save(self, progress: Progress, meter: Meter) -> None:
        """Write the checkpoint to resume from. All ranks must come here together."""
        progress.loss_sum, progress.losses = meter.losses()
        progress.skipped, progress.skipped_in_a_row = self._optimizer.skips.tolist()
        if self._ranks.is_main:
            self._run.flush_log()
            if self._last_is_whole and self.last.exists():
                self.last.replace(self.earlier)
            save_checkpoint(self.last, self._student, self._optimizer, progress, self._settings)
        self._last_is_whole = True

    def keep_best(self, progress: Progress, metric: float) -> None:
        """Keep the student's weights if `metric` is the highest so far."""
        if progress.best_step < 0 or math.isnan(progress.best_metric) or metric > progress.best_metric:
            progress.best_metric, progress.best_step = metric, progress.step
            if self._ranks.is_main:
                save_weights(self.best, self._student, self._settings, progress.step)

    def load_best(self) -> None:
        """Give the student the best step's weights. All ranks must come here together."""
        self._ranks.wait_for_all()  # rank 0 may still be writing them
        load_weights(self.best, self._student, self._settings)


def save_checkpoint(
    path: Path, model: nn.Module, optimizer: StudentOptimizer, progress: Progress, settings: str
) -> None:
    """Write a checkpoint, whole or not at all; `settings` is the run's `fingerprint`."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    for parameter, state in optimizer.adamw.state.items():
        tensors |= {f"optimizer.{key}.{names[parameter]}": value for key, value in state.items()}
    scaler = optimizer.scaler.state_dict()  # empty if it is not used
    save_tensors(path, tensors, {"progress": dataclasses.asdict(progress), "scaler": scaler, "recipe": settings})


def restore(
    path: Path,
    content: tuple[dict[str, torch.Tensor], Any],
    model: nn.Module,
    optimizer: StudentOptimizer,
    settings: str,
) -> Progress:
    """Put a checkpoint's tensors and state back into model and optimizer; gives how far the run had come.

    Raises:
        InputError: the checkpoint, `path`, is of a run with other settings, text or teacher.
    """
    tensors, state = content
    written = state.get("recipe") if isinstance(state, dict) else None
    if written != settings:
        same = isinstance(written, str) and written.partition(" ")[0] == settings.partition(" ")[0]
        what = "on other text or of another teacher, which have changed since" if same else "with other settings"
        raise InputError(f"{path}: is of a run {what}; give another --name, or run without --resume")
    model.load_state_dict(part(tensors, "model."))
    names = dict(model.named_parameters())
    for full_name, tensor in part(tensors, "optimizer.").items():
        key, _, name = full_name.partition(".")
        state_of = optimizer.adamw.state[names[name]]
        if key in state_of:
            state_of[key].copy_(tensor)  # in place: it may be part of a flat array
        else:
            state_of[key] = tensor.clone().to(names[name].device)
    if state["scaler"]:
        optimizer.scaler.load_state_dict(state["scaler"])
    return Progress(**state["progress"])


def save_weights(path: Path, model: nn.Module, run: str, step: int) -> None:
    """Write a model's weights alone, whole or not at all, with the run's settings and the step that they are of."""
    save_tensors(path, model.state_dict(), {"run": run, "step": step})


def load_weights(path: Path, model: nn.Module, run: str) -> None:
    """Load weights that `save_weights` wrote."""
    model.load_state_dict(read_weights(path, run)[0])


def read_weights(path: Path, run: str) -> tuple[dict[str, torch.Tensor], int]:
    """The tensors that `save_weights` wrote, and their step; InputError if missing, corrupt or another run's."""
    tensors, state = load_tensors(path)
    if not isinstance(state, dict) or state.keys() != {"run", "step"} or state["run"] != run:
        raise InputError(f"{path}: not weights of this run")
    return tensors, state["step"]


def part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def fingerprint(recipe: Recipe, labels: Labels, total: int) -> str:
    """A text that differs between runs which would take different steps: two SHA-256 and the number of steps."""
    settings = {key: value for key, value in dataclasses.asdict(recipe).items() if key not in FREE_TO_CHANGE}
    settings_hash = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return f"{settings_hash} {labels.fingerprint} {total}"
