"""The reader without torch gives the Embedder's embeddings from the exported files, and imports nothing heavy."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from processes import ROOT
from tiny import AWKWARD, edit, english_sentences, load, make_bert_dir, make_family_dir

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install '.[onnx]'")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install '.[onnx]'")

from shortstack import serve  # noqa: E402 (torch may be there without the extra)
from shortstack.distillation.export import export  # noqa: E402

SENTENCES = AWKWARD + english_sentences(20)
ENGINES = [name for name in ("onnxruntime", "openvino") if serve.find_spec(name)]


@pytest.fixture(scope="module", params=["prompts, cls, lower-cased", "mpnet"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("serve") / "model"
    if request.param == "mpnet":  # its graph has no segments, and padding is number 1
        make_family_dir(directory, "mpnet")
    else:
        prompts = {"query": "who sees ", "passage": "a dog: "}
        make_bert_dir(directory, layers=2, pooling="cls", normalize=False, prompts=prompts, default_prompt="query")
        edit(directory / "sentence_bert_config.json", do_lower_case=True)
    export(str(directory))
    return directory


@pytest.mark.parametrize("engine", ENGINES)
def test_fp32_equals_the_embedder(exported: Path, engine: str) -> None:
    ours, light = load(exported), serve.Embedder(exported, engine=engine)
    expected = ours.encode(SENTENCES)
    found = light.encode(SENTENCES)
    assert found.dtype == np.float32 and light.dimensions == ours.dimensions
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(light.encode(SENTENCES[0]), expected[0], atol=1e-5)
    np.testing.assert_allclose(light.encode(["dog"], prompt="the "), ours.encode(["dog"], prompt="the "), atol=1e-5)
    for role, encode in (("query", light.encode_query), ("document", light.encode_document)):
        np.testing.assert_allclose(encode(["dog"]), ours.encode(["dog"], prompt=ours.role_prompt(role)), atol=1e-5)
    np.testing.assert_allclose(light.similarity(found, found), ours.similarity(expected, expected), atol=1e-5)
    assert light.encode([]).shape == (0, ours.dimensions)


@pytest.mark.parametrize("engine", ENGINES)
def test_int8_is_near(exported: Path, engine: str) -> None:
    expected, found = (
        load(exported).encode(SENTENCES),
        serve.Embedder(exported, "int8", engine, threads=1).encode(SENTENCES),
    )
    cosines = (expected * found).sum(axis=1) / np.linalg.norm(expected, axis=1) / np.linalg.norm(found, axis=1)
    assert cosines.mean() > 0.97


def test_batches_hold_every_sentence_once_within_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "TOKENS_PER_BATCH", 20)
    lengths = [5, 30, 1, 7, 7, 2, 11]
    found = list(serve.batches(lengths))
    assert sorted(sum(found, [])) == list(range(7))
    assert all(len(rows) == 1 or len(rows) * max(lengths[row] for row in rows) <= 20 for rows in found)
    assert found[0] == [2, 5, 0]


def test_what_is_missing_is_named(tiny_model_dir: Path) -> None:
    with pytest.raises(FileNotFoundError, match="onnx/model.onnx is missing; write it with"):
        serve.Embedder(tiny_model_dir, engine="onnxruntime")
    with pytest.raises(ValueError, match="engine 'onnxruntime' with precision 'bf16': choose among"):
        serve.Embedder(tiny_model_dir, "bf16", "onnxruntime")
    assert serve.installed_engine() == "onnxruntime"


def test_it_needs_no_torch_and_no_transformers() -> None:
    heavy = "{'torch', 'transformers', 'datasets', 'scipy', 'pyarrow'}"
    code = f"import sys; from shortstack.serve import Embedder; print({heavy} & sys.modules.keys() or 'none')"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert ended.stdout.strip() == "none", ended.stderr
