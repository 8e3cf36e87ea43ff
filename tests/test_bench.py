"""bench.py: what it counts, what it writes, and what it says to wrong arguments. Never how fast something is."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import english_sentences

import bench
from model import Embedder
from model.files import InputError


def run_bench(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["bench.py", *map(str, arguments)])
    bench.main()


def test_bench_json_has_the_agreed_keys(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = Embedder.load(tiny_model_dir, precision="fp32")
    teacher.keep_layers([0, 5]).save(tmp_path / "student")
    (tmp_path / "text.txt").write_text("\n".join(english_sentences(40)))
    run_bench(
        monkeypatch, tmp_path / "student", "--teacher", tiny_model_dir, "--sentences", tmp_path / "text.txt",
        "--precision", "fp32", "--repeats", 2, "--count", 30, "--device", "cpu", "--output", tmp_path,
    )  # fmt: skip
    result = json.loads((tmp_path / "bench.json").read_text())
    assert {"device", "workload", "rows", "student_speedup", "layer_ratio", "training"} == set(result)
    assert [(row["system"], row["precision"], row["layers"]) for row in result["rows"]] == [
        ("teacher", "fp32", 6),
        ("student", "fp32", 2),
    ]
    for row in result["rows"]:
        assert row["slowest"] <= row["sentences_per_second"] <= row["fastest"]
        assert row["tokens_per_second"] > row["sentences_per_second"]
        assert 0 < row["fraction_of_peak"] < 1.5
        assert row["tflops"] > 0 and row["peak_memory_mib"] > 0
    assert result["layer_ratio"] == 3
    assert result["workload"]["sentences"] == 30
    printed = capsys.readouterr().out
    assert "teacher" in printed and "layers promise 3.00" in printed


def test_flops_of_one_layer_by_hand(tiny_model_dir: Path) -> None:
    one = Embedder.load(tiny_model_dir, precision="fp32").keep_layers([0])
    D, inner = one.bert.config.hidden_size, one.bert.config.intermediate_size
    tokens, pairs = 3 + 5, 9 + 25
    products = 2 * tokens * (4 * D * D + 2 * D * inner)
    assert bench.encoder_flops(one, np.array([3, 5])) == products + 4 * D * pairs


def test_flops_with_cls_pooling_leave_out_what_is_not_computed(tiny_cls_dir: Path) -> None:
    cls = Embedder.load(tiny_cls_dir, precision="fp32")
    lengths = np.array([4, 9, 30])
    spared = bench.encoder_flops(cls, lengths)
    mean = Embedder.load(tiny_cls_dir, precision="fp32", pooling="mean")
    assert spared < bench.encoder_flops(mean, lengths)


@pytest.mark.parametrize("layers", [5, 2])
def test_shape_makes_an_embedder_that_reads_each_number_as_a_token(layers: int) -> None:
    embedder = bench.random_embedder("minilm-l6", layers, torch.device("cpu"))
    assert embedder.bert.config.num_hidden_layers == layers
    assert embedder.tokenize(["17 30000"])[0].tolist() == [2, 17, 30000, 3]


def test_random_sentences_have_the_wanted_mean_length() -> None:
    embedder = bench.random_embedder("minilm-l6", 1, torch.device("cpu"))
    lengths = [len(tokens) for tokens in embedder.tokenize(bench.random_sentences(500, 16, 30522))]
    assert abs(np.mean(lengths) - 16) < 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "give MODEL, or --shape"),
        (["--shape", "bert-huge"], "bert-huge"),
        (["--shape", "minilm-l6", "--precision", "fp7"], "fp7"),
        (["--shape", "minilm-l6", "--repeats", "0"], "at least 1"),
        (["no-such-model", "--teacher", "no-such-teacher"], "no-such-model"),
    ],
)
def test_wrong_arguments_are_named(arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=message):
        run_bench(monkeypatch, *arguments)


def test_a_model_outside_a_run_needs_a_teacher_and_text(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="name its teacher"):
        run_bench(monkeypatch, tiny_model_dir)
    with pytest.raises(InputError, match="give --sentences"):
        run_bench(monkeypatch, tiny_model_dir, "--teacher", tiny_model_dir)
