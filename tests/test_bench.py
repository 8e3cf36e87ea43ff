"""bench.py: what it counts, what it writes, and what it says to wrong arguments. Never how fast something is."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from processes import ROOT
from tiny import english_sentences
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from shortstack import bench
from shortstack.benchmark import latency, peers, timing
from shortstack.benchmark.random_models import random_embedder, random_sentences, shape_config
from shortstack.benchmark.timing import encoder_flops
from shortstack.distillation.evaluation import latency as one_query
from shortstack.distillation.export import ONNX, ONNX_INT8, write_fp32
from shortstack.model import Embedder, PackedTokens
from shortstack.model.engine import gelu
from shortstack.model.files import InputError
from shortstack.model.tokens import Tokenized


def export_quickly(directory: str) -> None:
    embedder, fp32 = Embedder.load(directory, "cpu", "fp32"), Path(directory) / ONNX
    write_fp32(embedder, fp32)
    shutil.copy(fp32, Path(directory) / ONNX_INT8)


def test_bench_json_has_the_agreed_keys(
    tiny_model_dir: Path, tmp_path: Path, call: Callable[..., None], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(latency, "export", export_quickly)  # without int8 and OpenVINO, which take a minute
    monkeypatch.setattr(latency, "OPENVINO_PACKAGES", ["no_such_package"])
    milliseconds = {gelu.TILINGS[0]: 0.5, gelu.TILINGS[1]: 0.25, None: 0.3}  # what only a GPU can tell
    monkeypatch.setattr(gelu, "TIMES", {(torch.device("cuda", 0), torch.float16, 4096, 1024): milliseconds})
    teacher = Embedder.load(tiny_model_dir, precision="fp32")
    teacher.keep_layers([0, 5]).save(tmp_path / "student")
    (tmp_path / "text.txt").write_text("\n".join(english_sentences(40)))
    call(
        bench.main, tmp_path / "student", "--teacher", tiny_model_dir, "--sentences", tmp_path / "text.txt",
        "--precision", "fp32", "--repeats", 2, "--count", 30, "--device", "cpu", "--output", tmp_path,
        "--latency", "--queries", 3,
    )  # fmt: skip
    result = json.loads((tmp_path / "bench.json").read_text())
    keys = {"device", "workload", "rows", "student_speedup", "layer_ratio", "training", "latency", "gelu_ms"}
    assert keys == set(result)
    assert [(row["system"], row["precision"], row["layers"]) for row in result["rows"]] == [
        ("teacher", "fp32", 6),
        ("student", "fp32", 2),
    ]
    for row in result["rows"]:
        assert row["slowest"] <= row["sentences_per_second"] <= row["fastest"]
        assert row["tokens_per_second"] > row["sentences_per_second"]
        assert 0 < row["fraction_of_peak"] < 1.5
        assert row["tflops"] > 0 and row["peak_memory_mib"] > 0
        assert row["cosine"] == pytest.approx(1)
    shape = {"type": "float16", "inputs": 1024, "outputs": 4096}
    assert result["gelu_ms"] == [shape | {"one_pass": 0.25, "two_passes": 0.3}]
    assert "fp32" in result["device"]["peak_tflops"]
    assert result["layer_ratio"] == 3
    assert result["workload"]["sentences"] == 30
    tools = ["", ", sentence-transformers", ", serve, onnxruntime", ", serve, onnxruntime"]
    for name, layers, rows in (("teacher", 6, result["latency"][:4]), ("student", 2, result["latency"][4:])):
        assert [row["system"] for row in rows] == [name + tool for tool in tools]
        assert all(row["layers"] == layers and list(row["latency_ms"]) == ["8", "16", "64"] for row in rows)
        assert all(0 < each["p50"] <= each["p99"] for row in rows for each in row["latency_ms"].values())
    printed = capsys.readouterr().out
    assert "1024 to 4096, float16: 0.250 ms in one pass, 0.300 in two" in printed
    assert "student, serve, onnxruntime" in printed and "layers promise 3.00" in printed


@pytest.mark.parametrize("first_token_only", [False, True])
def test_flops_are_those_that_torch_counts(tiny_cls_dir: Path, first_token_only: bool) -> None:
    embedder = Embedder.load(tiny_cls_dir, "cpu", "fp32", pooling="cls" if first_token_only else "mean")
    tokens = PackedTokens.pack(Tokenized.of([np.arange(4, 4 + length, dtype=np.int32) for length in (4, 9, 30)]))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        embedder.bert.forward_packed(tokens, embedder.settings.pooling)  # plain products, which torch's counter knows
    ours = encoder_flops(embedder.bert.config, np.array([4, 9, 30]), first_token_only)
    assert counter.get_total_flops() == pytest.approx(ours, rel=1e-6)


@pytest.mark.parametrize("layers", [5, 2])
def test_shape_makes_an_embedder_that_reads_each_number_as_a_token(layers: int) -> None:
    embedder = random_embedder("minilm-l6", layers, "cpu", "fp32")
    assert embedder.bert.config.num_hidden_layers == layers
    assert embedder.tokenize(["17 30000"])[0].tolist() == [2, 17, 30000, 3]


def test_random_sentences_have_the_wanted_mean_length() -> None:
    embedder = random_embedder("bert-tiny", 1, "cpu", "fp32")
    lengths = [len(tokens) for tokens in embedder.tokenize(random_sentences(embedder, 500, 16))]
    assert abs(np.mean(lengths) - 16) < 1


def test_a_shape_may_be_a_config_file(tiny_cls_dir: Path) -> None:
    assert shape_config(str(tiny_cls_dir / "config.json")).hidden_size == 48


@pytest.mark.parametrize("count", [1, 5, 30])
def test_warm_up_is_not_among_the_latencies(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    asked: list[str] = []
    of_calls = iter([100.0] * min(count, 20) + [1.0] * count)  # seconds
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)

    def encode(query: str) -> None:
        asked.append(query)
        clock.now += next(of_calls)

    monkeypatch.setattr(one_query, "time", clock)
    assert one_query.latencies(encode, list(map(str, range(count)))) == {"p50": 1000, "p99": 1000}
    assert len(asked) == min(count, 20) + count


def test_systems_take_turns_and_warm_up_uncounted() -> None:
    order: list[str] = []
    seconds = timing.in_turn([lambda: order.append("a"), lambda: order.append("b")], 2, torch.device("cpu"))
    assert order == ["a", "b", "a", "b", "a", "b"]
    assert [len(times) for times in seconds] == [2, 2]


def test_queries_have_the_tokens_that_were_asked_for(tiny_model_dir: Path) -> None:
    embedder = Embedder.load(tiny_model_dir, "cpu", "fp32")
    for tokens, queries in latency.queries_of(embedder, english_sentences(40), 5).items():
        assert embedder.tokenize(queries).lengths.tolist() == [tokens] * 5
    embedder.set_max_length(20)
    assert list(latency.queries_of(embedder, english_sentences(40), 2)) == [8, 16]
    with pytest.raises(InputError, match="--latency: the text is too short for a query of 8 tokens"):
        latency.queries_of(embedder, ["one"], 5)


def test_peers_embed_what_we_embed(tiny_cls_dir: Path, tmp_path: Path) -> None:
    ours = Embedder.load(tiny_cls_dir, "cpu", "fp32")
    text = english_sentences(20)
    found = {
        (name, precision): make() for name, precision, make in peers.encoders(ours, ["fp32", "int8"], text, tmp_path)
    }
    assert found.keys() >= {("sentence-transformers", "fp32"), ("ONNX Runtime", "fp32")}
    if peers.installed("OpenVINO", "openvino", "nncf"):
        assert found.keys() >= {("OpenVINO", "fp32"), ("OpenVINO", "int8")}
    for (name, precision), peer in found.items():
        theirs = np.asarray(peer.encode(text, prompt="", batch_size=8))
        np.testing.assert_allclose(theirs, ours.encode(text), atol=1e-4 if precision == "fp32" else 0.5, err_msg=name)


def test_trainers_are_timed_on_the_same_work(tiny_cls_dir: Path) -> None:
    pytest.importorskip("accelerate", reason="accelerate, which sentence-transformers' trainer needs, is missing")
    load = partial(Embedder.load, tiny_cls_dir, "cpu")
    rows = peers.trainers(load, english_sentences(40), batch_size=8, steps=2, precisions=["fp32"])
    assert [(row["system"], row["precision"], row["layers"]) for row in rows] == [
        ("ours", "fp32", 8),
        ("sentence-transformers trainer", "fp32", 8),
    ]
    for row in rows:
        assert 0 < row["slowest"] <= row["sentences_per_second"] <= row["fastest"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--shape", "minilm-l6", "--precision", "fp7"], "fp7"),
        (["--shape", "minilm-l6", "--repeats", "0"], "at least 1"),
        (["no-such-model", "--teacher", "no-such-teacher"], "no-such-teacher"),
        (["{model}"], "no run names its teacher"),
    ],
)
def test_wrong_arguments_are_named(
    tiny_model_dir: Path, refusal: Callable[..., str], arguments: list[str], message: str
) -> None:
    assert message in refusal(bench.main, *(argument.format(model=tiny_model_dir) for argument in arguments))


def test_the_reference_run_is_timed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "shortstack.benchmark.reference", "--shape", "bert-tiny", "--sentences", "300"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    assert "300 sentences of" in ended.stdout and "text to model:" in ended.stdout


def test_random_weights_beside_other_tools(
    tmp_path: Path, call: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peers read them from files."""
    monkeypatch.setattr(peers, "installed", lambda what, *packages: "ONNX" not in what)
    call(
        bench.main, "--shape", "bert-tiny", "--layers", "2,1", "--precision", "fp32", "--peers", "--repeats", 1,
        "--count", 20, "--batch-size", 8, "--steps", 2, "--device", "cpu", "--output", tmp_path,
    )  # fmt: skip
    result = json.loads((tmp_path / "bench.json").read_text())
    assert [row["system"] for row in result["rows"]] == ["teacher", "student", "sentence-transformers"]
    assert all(row["cosine"] == pytest.approx(1, abs=1e-5) for row in result["rows"])
    assert [(row["system"], row["batch_size"]) for row in result["training"]] == [
        ("ours", 8),
        ("sentence-transformers trainer", 8),
    ]


def test_a_peer_keeps_to_its_own_batch_size() -> None:
    class Echo:
        def encode(self, sentences: list[str], *, prompt: str, batch_size: int) -> int:
            return batch_size

    assert peers.OwnBatchSize(Echo(), 128).encode(["a"], prompt="", batch_size=4096) == 128
