"""Checkpoints: a run that is taken up again goes on bit for bit; damage and other settings are refused."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import tokens_of
from torch import nn

from shortstack.distillation.training.checkpoint import (
    Progress,
    load_weights,
    restore,
    save_checkpoint,
    save_weights,
)
from shortstack.distillation.training.rows import BatchRows
from shortstack.model.files import InputError
from shortstack.model.tensors import load_tensors


class Small(nn.Module):
    """A table trained by rows and a matrix trained by the optimizer, as in a student."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.table = nn.Parameter(torch.randn(9, 4), requires_grad=False)
        self.dense = nn.Linear(4, 3)


def optimizer_for(model: Small) -> torch.optim.AdamW:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01, fused=True)


def train(model: Small, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for number in steps:
        words = tokens_of(np.random.default_rng(number).integers(9, size=5).tolist())
        rows = BatchRows(model.table, words)
        model.dense(rows.of(words)).square().sum().backward()
        optimizer.step()
        rows.step(optimizer, torch.tensor(False))
        optimizer.zero_grad()


def no_scaler() -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", enabled=False)


def with_scaler(adamw: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None = None) -> Any:
    """What of a StudentOptimizer a checkpoint keeps."""
    return SimpleNamespace(adamw=adamw, scaler=scaler or no_scaler())


def save(path: Path, model: Small, optimizer: torch.optim.Optimizer, **changes: Any) -> None:
    values = {"progress": Progress(step=3), "scaler": no_scaler(), "recipe": "settings"} | changes
    both = with_scaler(optimizer, values["scaler"])
    save_checkpoint(path, model, both, values["progress"], values["recipe"])


def load(path: Path, model: Small, optimizer: Any, settings: str = "settings") -> Progress:
    return restore(path, load_tensors(path), model, optimizer, settings)


def test_resumes_bit_for_bit(tmp_path: Path) -> None:
    model = Small(0)
    optimizer = optimizer_for(model)
    train(model, optimizer, range(3))
    save(tmp_path / "last.safetensors", model, optimizer)
    train(model, optimizer, range(3, 8))

    again = Small(1)
    its_optimizer = optimizer_for(again)
    progress = load(tmp_path / "last.safetensors", again, with_scaler(its_optimizer))
    assert progress == Progress(step=3)
    train(again, its_optimizer, range(3, 8))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    for mine, theirs in ((model.table, again.table), (model.dense.weight, again.dense.weight)):
        for key, value in optimizer.state[mine].items():
            assert torch.equal(value, its_optimizer.state[theirs][key]), key


def test_a_loaded_checkpoint_does_not_change_with_its_file(tmp_path: Path) -> None:
    model, path = Small(0), tmp_path / "last.safetensors"
    optimizer = optimizer_for(model)
    train(model, optimizer, range(2))
    save(path, model, optimizer)
    load(path, model, with_scaler(optimizer))
    before = [value.clone() for state in optimizer.state.values() for value in state.values()]
    path.write_bytes(bytes(path.stat().st_size))
    after = [value for state in optimizer.state.values() for value in state.values()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_progress_and_scaler_come_back(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0, growth_interval=7)
    scaler.scale(torch.ones(()))
    progress = Progress(step=9, best_step=4, best_metric=-0.25, skipped=3, skipped_in_a_row=2)
    save(tmp_path / "a", Small(0), optimizer_for(Small(0)), progress=progress, scaler=scaler)
    fresh = torch.amp.GradScaler("cpu")
    model = Small(1)
    assert load(tmp_path / "a", model, with_scaler(optimizer_for(model), fresh)) == progress
    assert fresh.state_dict() == scaler.state_dict()
    save(tmp_path / "b", Small(0), optimizer_for(Small(0)), progress=Progress())
    found = load(tmp_path / "b", model, with_scaler(optimizer_for(model), no_scaler()))
    assert found.best_metric == -math.inf and found.best_step == -1


def test_a_run_with_other_settings_is_refused(tmp_path: Path) -> None:
    path, model = tmp_path / "last.safetensors", Small(0)
    optimizer = optimizer_for(model)
    save(path, model, optimizer)
    with pytest.raises(InputError, match=f"{path}: is of a run with other settings"):
        load(path, model, with_scaler(optimizer), "other settings")
    save_file({"model.table": torch.zeros(9, 4)}, path)  # someone else's file
    with pytest.raises(InputError, match="other settings"):
        load(path, model, with_scaler(optimizer))


def test_weights_alone(tmp_path: Path) -> None:
    model, other = Small(0), Small(1)
    save_weights(tmp_path / "best.safetensors", model, "this run", 7)
    load_weights(tmp_path / "best.safetensors", other, "this run")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    with safe_open(tmp_path / "best.safetensors", "pt") as file:
        assert set(file.keys()) == {"table", "dense.weight", "dense.bias"}
    with pytest.raises(InputError, match="no such file"):
        load_weights(tmp_path / "missing.safetensors", other, "this run")
    with pytest.raises(InputError, match="not weights of this run"):
        load_weights(tmp_path / "best.safetensors", other, "another run")
