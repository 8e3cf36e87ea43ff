"""ONNX and OpenVINO files embed as the model does; one that would not is never left behind."""

import importlib.util
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from tiny import AWKWARD, english_sentences, load, make_bert_dir

from shortstack.distillation import RunError
from shortstack.model import Embedder
from shortstack.model.files import InputError
from shortstack.serve import compile_openvino

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install '.[onnx]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install '.[onnx]'")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install '.[onnx]'")

from shortstack.distillation import export as module  # noqa: E402 (torch may be there without the extra)

SENTENCES = AWKWARD + english_sentences(20)
KINDS: dict[str, dict[str, Any]] = {
    "mean, normalised": {"layers": 2},
    "cls, raw, prompts": {"layers": 3, "pooling": "cls", "normalize": False, "prompts": {"query": "who sees "}},
    "dense, few positions": {
        "layers": 1, "dense": (16, "torch.nn.modules.activation.Tanh"), "hidden_act": "relu",
        "max_position_embeddings": 40, "max_length": 40, "type_vocab_size": 1,
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with its ONNX files."""
    directory = make_bert_dir(tmp_path_factory.mktemp("export") / "model", **KINDS[request.param])
    module.export(str(directory))
    return directory


def inputs_of(embedder: Embedder, sentences: list[str]) -> dict[str, np.ndarray]:
    """As another tool would make them, with the model's tokenizer."""
    batch = embedder.tokenizer(
        sentences, padding=True, truncation=True, max_length=embedder.settings.max_length, return_token_type_ids=True
    )
    return {name: np.array(batch[name]) for name in ("input_ids", "attention_mask", "token_type_ids")}


def run_file(path: Path, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["sentence_embedding", "last_hidden_state"], inputs)


@pytest.mark.parametrize("batch", [SENTENCES, ["one dog"], ["the cat sees the dog again"] * 5], ids=["mixed", "1", "5"])
def test_fp32_equals_the_model_and_sentence_transformers(exported: Path, batch: list[str]) -> None:
    embedder = load(exported)
    found, tokens = run_file(exported / "onnx" / "model.onnx", inputs_of(embedder, batch))
    np.testing.assert_allclose(found, embedder.encode(batch), atol=1e-5)
    np.testing.assert_allclose(found, SentenceTransformer(str(exported), device="cpu").encode(batch), atol=1e-5)
    assert tokens.shape[0] == len(batch) and tokens.shape[2] == embedder.bert.config.hidden_size


def test_last_hidden_state_are_the_last_layers(exported: Path) -> None:
    embedder = load(exported)
    inputs = inputs_of(embedder, SENTENCES)
    _, tokens = run_file(exported / "onnx" / "model.onnx", inputs)
    with torch.no_grad():
        expected = embedder.bert(*(torch.from_numpy(inputs[name]) for name in ("input_ids", "attention_mask")))
    real = inputs["attention_mask"].astype(bool)
    np.testing.assert_allclose(tokens[real], expected.last_hidden_state.numpy()[real], atol=1e-5)


def test_the_graph_has_the_promised_face(exported: Path) -> None:
    for name in (module.ONNX, module.ONNX_INT8, module.ONNX_UNSIGNED):
        graph = onnx.load(exported / name)
        onnx.checker.check_model(graph, full_check=True)
        shapes = {
            value.name: [part.dim_param or part.dim_value for part in value.type.tensor_type.shape.dim]
            for value in (*graph.graph.input, *graph.graph.output)
        }
        embedder = load(exported)
        batch, hidden = ["batch", "sequence"], embedder.bert.config.hidden_size
        assert shapes == {
            "input_ids": batch,
            "attention_mask": batch,
            "token_type_ids": batch,
            "last_hidden_state": [*batch, hidden],
            "sentence_embedding": ["batch", embedder.dimensions],
        }
    assert sorted(path.name for path in (exported / "onnx").iterdir()) == [
        "model.onnx",  # sentence-transformers and transformers.js look for these
        "model_qint8_arm64.onnx", "model_qint8_avx512_vnni.onnx", "model_quantized.onnx", "model_quint8_avx2.onnx",
    ]  # fmt: skip
    for name in module.ONNX_INT8_NAMES:
        assert (exported / name).read_bytes() == (exported / module.ONNX_INT8).read_bytes()


@pytest.mark.parametrize("name, kinds", [(module.ONNX_INT8, {"INT8", "UINT8"}), (module.ONNX_UNSIGNED, {"UINT8"})])
def test_int8_is_near_and_its_weights_are_int8(exported: Path, name: str, kinds: set[str]) -> None:
    embedder, path = load(exported), exported / name
    found, _ = run_file(path, inputs_of(embedder, SENTENCES))
    cosines = F.cosine_similarity(torch.from_numpy(found), torch.as_tensor(embedder.encode(SENTENCES)))
    assert cosines.mean() > 0.99 and cosines.min() > 0.97
    graph = onnx.load(path).graph
    products = 6 * embedder.bert.config.num_hidden_layers + (embedder.dense is not None)  # q, k, v, output, two of MLP
    assert Counter(node.op_type for node in graph.node)["MatMulInteger"] == products
    matrices = [weight for weight in graph.initializer if len(weight.dims) == 2 and min(weight.dims) > 1]
    types = {onnx.TensorProto.DataType.Name(weight.data_type) for weight in matrices}
    assert types == kinds  # of products, and of the embedding tables
    assert path.stat().st_size < 0.75 * (exported / "onnx" / "model.onnx").stat().st_size


def test_openvino_embeds_as_the_model_does(exported: Path) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed: pip install '.[openvino]'")
    pytest.importorskip("nncf", reason="nncf is not installed: pip install '.[openvino]'")
    embedder = load(exported)
    inputs, wanted = inputs_of(embedder, SENTENCES), embedder.encode(SENTENCES)
    exact, int8 = (
        compile_openvino(exported / "openvino" / name, {"INFERENCE_PRECISION_HINT": "f32"})
        for name in ("openvino_model.xml", "openvino_model_qint8_quantized.xml")
    )
    np.testing.assert_allclose(exact(inputs)["sentence_embedding"], wanted, atol=1e-5)
    assert exact(inputs)["last_hidden_state"].shape[2] == embedder.bert.config.hidden_size
    found = torch.from_numpy(int8(inputs)["sentence_embedding"])
    assert F.cosine_similarity(found, torch.as_tensor(wanted)).mean() > 0.98
    types = {node.get_element_type().get_type_name() for node in int8.get_runtime_model().get_ops()}
    assert "i8" in types
    assert sorted(path.name for path in (exported / "openvino").iterdir()) == [
        "openvino_model.bin", "openvino_model.xml",
        "openvino_model_qint8_quantized.bin", "openvino_model_qint8_quantized.xml",
    ]  # fmt: skip


@pytest.mark.parametrize("backend, module_name", [("onnx", "optimum.onnxruntime"), ("openvino", "optimum.intel")])
def test_sentence_transformers_backends_find_and_run_each_file(exported: Path, backend: str, module_name: str) -> None:
    reason = "sentence-transformers' backends need optimum-onnx and optimum-intel, which are for transformers 4"
    pytest.importorskip(module_name, reason=reason, exc_type=ImportError)
    wanted = torch.as_tensor(load(exported).encode(SENTENCES))
    for name in (module.ONNX, module.ONNX_INT8) if backend == "onnx" else (module.OPENVINO, module.OPENVINO_INT8):
        peer = SentenceTransformer(str(exported), device="cpu", backend=backend, model_kwargs={"file_name": name})
        assert F.cosine_similarity(torch.as_tensor(peer.encode(SENTENCES)), wanted).mean() > 0.98, name


# -- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Embedder]:
    """A model directory with a graph in it, and the Embedder that wrote it."""
    directory = make_bert_dir(tmp_path_factory.mktemp("export") / "model", layers=1)
    embedder = load(directory)
    module.write_fp32(embedder, directory / "model.onnx")
    return directory, embedder


@pytest.fixture
def tiny(one_layer: tuple[Path, Embedder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that is exported quickly: the exporter gives again what it gave the first time."""

    class Program:
        def save(self, path: Path, external_data: bool) -> None:
            shutil.copy(one_layer[0] / "model.onnx", path)

    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: Program())
    monkeypatch.setattr(module, "OPENVINO_PACKAGES", ["no_openvino"])
    return Path(shutil.copytree(one_layer[0], tmp_path / "tiny"))


@pytest.mark.parametrize("wrong", [0.01, np.nan])
def test_a_file_that_embeds_otherwise_is_not_left_behind(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    real = module.run_onnx
    monkeypatch.setattr(module, "run_onnx", lambda path, embedder: real(path, embedder) + wrong)
    with pytest.raises(RunError, match=r"model\.onnx: not written, its embeddings differ .* by up to"):
        module.export(str(tiny))
    assert list((tiny / "onnx").iterdir()) == []


def test_an_older_file_stays_where_the_new_one_is_wrong(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module.export(str(tiny))
    before = {path: path.read_bytes() for path in (tiny / "onnx").iterdir()}
    real = module.run_onnx
    mirror = {"model_qint": -1.0}
    monkeypatch.setattr(
        module, "run_onnx", lambda path, embedder: real(path, embedder) * mirror.get(path.name[1:11], 1.0)
    )
    with pytest.raises(RunError, match=r"model_qint8_avx512_vnni\.onnx: not written, int8 embeddings are only -"):
        module.export(str(tiny))
    assert {path: path.read_bytes() for path in (tiny / "onnx").iterdir()} == before


def end_at_once(*_: Any) -> None:
    os.abort()


def test_an_openvino_that_ends_its_process_is_told(
    one_layer: tuple[Path, Embedder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed: pip install '.[openvino]'")
    monkeypatch.setattr(module, "openvino_embeddings", end_at_once)
    with pytest.raises(RunError, match="model.xml: not written, OpenVINO ended its process on this CPU"):
        module.write_openvino(one_layer[1], one_layer[0] / "model.onnx", tmp_path / "model.xml")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(tiny: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else real(name, *rest))
    with pytest.raises(InputError, match=f"export needs more packages: pip install {package}"):
        module.export(str(tiny))
    assert not (tiny / "onnx").exists()


def test_the_model_itself_stays_as_it_was(one_layer: tuple[Path, Embedder], tmp_path: Path) -> None:
    directory, embedder = one_layer
    before = load(directory).encode(SENTENCES)
    np.testing.assert_array_equal(embedder.encode(SENTENCES), before)
    embedder.save(tmp_path / "again")
    np.testing.assert_array_equal(load(tmp_path / "again").encode(SENTENCES), before)


def test_a_model_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="some/name: is no directory here; say with --output"):
        module.export("some/name")
    with pytest.raises(InputError, match="no such model directory"):
        module.export("./missing", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="config.json: no such file"):
        module.export(str(tmp_path / "empty"))


def test_the_command(
    tiny: Path, tmp_path: Path, call: Callable, refusal: Callable, capfd: pytest.CaptureFixture[str]
) -> None:
    call(module.main, tiny, "--output", tmp_path / "out")
    printed = capfd.readouterr()
    lines = printed.out.splitlines()
    assert len(lines) == 5 and printed.err == ""
    assert (
        lines[0].startswith(f"{tmp_path / 'out' / 'onnx' / 'model.onnx'}: ") and " MB, embeddings within " in lines[0]
    )
    assert lines[1].startswith(f"{tmp_path / 'out' / module.ONNX_INT8}: ") and re.search(
        r" MB, mean cosine similarity (0.99..|1.0000)$", lines[1]
    )
    assert "model_qint8_arm64.onnx" in lines[2] and lines[2].endswith("model_quantized.onnx: the same file")
    assert lines[3].startswith(f"{tmp_path / 'out' / module.ONNX_UNSIGNED}: ")
    assert lines[4].startswith("OpenVINO's files are left out, they need more packages: pip install no_openvino")
    assert not (tiny / "onnx").exists()
    assert refusal(module.main) == "error: the following arguments are required: MODEL; see --help"
