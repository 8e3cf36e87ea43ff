"""Log lines reach each tracker, without the figures that are not there."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shortstack.distillation import curves
from shortstack.model.files import InputError

LINES = [{"step": 3, "loss": 0.5, "grad_norm": None}, {"step": 4, "loss": 0.25, "grad_norm": 1.0}]


def test_weights_and_biases_gets_the_recipe_and_each_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    begun: dict[str, Any] = {}
    logged: list[tuple[int, dict[str, float]]] = []
    ended: list[int] = []

    def init(**settings: Any) -> Any:
        begun.update(settings)
        return SimpleNamespace(log=lambda figures, step: logged.append((step, figures)), finish=lambda: ended.append(1))

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    (tmp_path / "mine").mkdir()
    log, close = curves.wandb_curves(tmp_path / "mine", {"seed": 42}, -1)
    for line in LINES:
        log(line)
    close()
    assert ended == [1]
    assert begun["config"] == {"seed": 42} and begun["name"] == "mine" and begun["resume"] == "allow"
    assert logged == [(3, {"loss": 0.5}), (4, {"loss": 0.25, "grad_norm": 1.0})]

    first = begun["id"]
    curves.wandb_curves(tmp_path / "mine", {}, 4)
    assert begun["id"] == first  # a resumed run goes on with its curves
    curves.wandb_curves(tmp_path / "mine", {}, -1)
    assert begun["id"] != first and begun["id"].startswith("mine-")  # another of the same name has its own


def test_what_the_field_may_say(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"tensorboard"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name in installed else None)
    assert curves.trackers_of("auto") == ["tensorboard"] == curves.trackers_of("tensorboard")
    assert curves.trackers_of("none") == []
    with pytest.raises(InputError, match="report_to: wandb is not installed; pip install wandb"):
        curves.trackers_of("tensorboard,wandb")
    with pytest.raises(InputError, match="report_to: 'mlflow' is not one of auto, none, tensorboard, wandb"):
        curves.trackers_of("mlflow")
    installed.clear()
    assert curves.trackers_of("auto") == []
