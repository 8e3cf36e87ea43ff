"""Checkpoints: everything needed to go on exactly, as one safetensors file, with no pickle.

What is not in the file follows from the step: the learning rate, the order of the data and the dropout of each step are
functions of the recipe's seed and the step's number.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model.files import InputError, load_tensors, save_tensors


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        step: optimizer steps done.
        best_step, best_metric: the best evaluation so far and its step; -1 before the first.
        skipped: steps skipped because of a gradient that was not finite; `skipped_in_a_row` of these the latest.
    """

    step: int = 0
    best_step: int = -1
    best_metric: float = float("-inf")
    skipped: int = 0
    skipped_in_a_row: int = 0

    def count_step(self, finite: bool) -> None:
        """Count a step; one whose gradient was not finite was left out."""
        self.step += 1
        self.skipped += not finite
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1


def save_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, scaler: Any, recipe: str
) -> None:
    """Write a checkpoint, whole or not at all.

    Args:
        path: the file.
        model: whose weights are kept in fp32.
        optimizer: one whose state holds tensors by parameter, such as AdamW.
        progress: how far the run has come.
        scaler: the gradient scaler; its state is empty where it is not used.
        recipe: fingerprint of the settings that must not change when the run goes on.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    for parameter, state in optimizer.state.items():
        tensors |= {f"optimizer.{key}.{names[parameter]}": value for key, value in state.items()}
    state = {"progress": dataclasses.asdict(progress), "scaler": scaler.state_dict(), "recipe": recipe}
    save_tensors(path, tensors, state)


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any, recipe: str
) -> Progress:
    """Put a checkpoint's content back into model, optimizer and scaler.

    Returns:
        How far the run had come.

    Raises:
        InputError: the file is damaged, or of a run with other settings.
    """
    try:
        tensors, state = load_tensors(path)
    except InputError as error:
        raise InputError(f"{str(error).partition('; ')[0]}; start again without --resume") from None
    if not isinstance(state, dict) or state.get("recipe") != recipe:
        raise InputError(f"{path}: is of a run with other settings; give another --name, or run without --resume")
    model.load_state_dict(part(tensors, "model."))
    names = {name: parameter for name, parameter in model.named_parameters()}
    for full_name, tensor in part(tensors, "optimizer.").items():
        key, _, name = full_name.partition(".")
        place = "cpu" if key == "step" and not is_fused(optimizer) else names[name].device
        optimizer.state[names[name]][key] = tensor.clone().to(place)
    if state["scaler"]:
        scaler.load_state_dict(state["scaler"])
    return Progress(**state["progress"])


def save_weights(path: Path, model: nn.Module) -> None:
    """Write a model's weights alone, whole or not at all."""
    save_tensors(path, model.state_dict(), state="weights")


def load_weights(path: Path, model: nn.Module) -> None:
    """Put weights of `save_weights` back.

    Raises:
        InputError: the file is missing or damaged.
    """
    model.load_state_dict(read_weights(path))


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of `save_weights`.

    Raises:
        InputError: the file is missing or damaged.
    """
    tensors, state = load_tensors(path)
    if state != "weights":  # without our checksum
        raise InputError(f"{path}: no weights of ours")
    return tensors


def is_fused(optimizer: torch.optim.Optimizer) -> bool:
    return bool(optimizer.defaults.get("fused"))


def part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
