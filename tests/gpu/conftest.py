"""Tests that run on a GPU by `make test-gpu`, and on the CPU with all the others, so that they are known to run.

What they measure is printed as a table at the end and written to gpu.json.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from devices import ON_GPU, device_named

rows: list[dict[str, Any]] = []


@pytest.fixture(params=["cpu", ON_GPU])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU for a rehearsal, then a GPU."""
    return device_named(request.param)


@pytest.fixture(params=[ON_GPU])
def gpu(request: pytest.FixtureRequest) -> torch.device:
    """A GPU, for what has no rehearsal."""
    return device_named(request.param)


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Keep a figure for the table: record(name, value, allowed)."""

    def keep(name: str, value: Any, allowed: Any = "") -> None:
        if request.node.get_closest_marker("gpu"):
            rows.append({"test": request.node.name, "what": name, "value": value, "allowed": allowed})

    return keep


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not rows:
        return
    for row in rows:
        value = f"{row['value']:.3g}" if isinstance(row["value"], float) else row["value"]
        terminalreporter.write_line(f"{row['test']:<70.70} {row['what']:<32} {value!s:>12} {row['allowed']!s:>10}")
    outcomes = {kind: len(terminalreporter.stats.get(kind, [])) for kind in ("passed", "failed", "skipped")}
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    machine = {
        "gpus": names,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }
    Path("gpu.json").write_text(json.dumps(machine | outcomes | {"rows": rows}, indent=2), encoding="utf-8")
    terminalreporter.write_line("wrote gpu.json")
