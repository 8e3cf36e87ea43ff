"""`distill` as users call it: texts in, a student out."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import ROOT
from tiny import english_sentences, load

from shortstack import Embedder, distill
from shortstack.model.files import InputError

TEXTS = [f"{text}\nsecond line" for text in english_sentences(120)]
SETTINGS: dict[str, Any] = {"batch_size": 20, "device": "cpu", "precision": "fp32", "report_to": "none"}


def test_texts_in_and_a_student_out(tiny_model_dir: Path, tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = []
    student = distill(tiny_model_dir, TEXTS, 2, output=tmp_path, callbacks=[lines.append], log_every=1, **SETTINGS)
    assert isinstance(student, Embedder) and student.bert.config.num_hidden_layers == 2
    logged = [json.loads(line) for line in (tmp_path / "student" / "log.jsonl").read_text().splitlines()]
    assert lines == logged and sum("loss" in line for line in lines) == 6  # 108 texts in batches of 20
    held_out = json.loads((tmp_path / "student" / "held_out.json").read_text())["sentences"]
    assert len(held_out) == 12 and set(held_out) <= set(TEXTS)  # line breaks included
    saved = load(tmp_path / "student" / "model").encode(TEXTS[:4])
    assert np.allclose(student.encode(TEXTS[:4]), saved, atol=0.02)  # bf16 where the CPU has it


def test_nothing_is_left_without_an_output(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    student = distill(str(tiny_model_dir), iter(TEXTS), [0, 5], **SETTINGS)
    assert not list(tmp_path.iterdir())
    assert student.encode(["a dog"]).shape == (1, 32)


def test_wrong_settings_are_named_before_anything_is_written(tiny_model_dir: Path, tmp_path: Path) -> None:
    for settings, words in (
        ({"lr": 1.0}, "distill: unknown key 'lr'"),
        ({"epochs": 0}, "epochs = 0 is not allowed"),
        ({"layers": None}, "layers = None must be of type"),
        ({"sentences": TEXTS}, "distill: sentences: the texts are the second argument"),
        ({"report_to": "mlflow"}, "report_to: 'mlflow' is not one of"),
    ):
        with pytest.raises(InputError, match=words):
            distill(tiny_model_dir, TEXTS, output=tmp_path, **settings)
    texts: Any
    for texts, words in (([], "got none"), ("my.txt", "got one string"), ([1], "distill: takes a list of texts$")):
        with pytest.raises(InputError, match=words):
            distill(tiny_model_dir, texts, output=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_script_needs_no_guard(tiny_model_dir: Path, tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text(
        f"from shortstack import distill\n"
        f"student = distill({str(tiny_model_dir)!r}, {TEXTS!r}, layers=3, **{SETTINGS!r})\n"
        f"print(student.dimensions)\n"
    )
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300
    )
    assert ended.returncode == 0 and ended.stdout.splitlines()[-1] == "32", ended.stderr
