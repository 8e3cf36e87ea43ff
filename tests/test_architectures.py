"""Every architecture computes what transformers and sentence-transformers do, and its students stay of its kind."""

import functools
import signal
from pathlib import Path

import hooks
import numpy as np
import pytest
import torch
from processes import RunDirectory, assert_same_run, forked_ranks, train, write_recipe
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from tiny import AWKWARD, edit, english_sentences, make_family_dir

from shortstack.distillation.report.__main__ import write_report
from shortstack.model import Embedder, PackedTokens
from shortstack.model.bert import ARCHITECTURES, position_buckets
from shortstack.model.files import InputError
from shortstack.model.tokens import Tokenized
from shortstack.serve import compile_openvino

TEXT = [*english_sentences(40), *AWKWARD]
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(scope="module", params=[kind for kind in ARCHITECTURES if kind != "bert"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def directory(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family_dir(tmp_path_factory.mktemp(kind) / "teacher", kind)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_embeds_as_sentence_transformers_does(directory: Path, pooling: str) -> None:
    ours = Embedder.load(directory, "cpu", "fp32", pooling=pooling)
    theirs = SentenceTransformer(str(directory), device="cpu")
    theirs[1].pooling_mode = pooling
    np.testing.assert_allclose(ours.encode(TEXT), theirs.encode(TEXT), atol=1e-5)


@pytest.mark.parametrize("lengths", [[40] * 4, [5, 37, 40, 40]], ids=["equal", "unequal"])
def test_gradients_equal_transformers(directory: Path, kind: str, lengths: list[int]) -> None:
    """With the same weights, by transformers' own forward and by the packed one."""
    bert = ARCHITECTURES[kind].from_pretrained(directory, attn_implementation="eager")
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(5, 200, (length,), generator=generator) for length in lengths]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=1)
    mask = torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]
    tokens = PackedTokens.pack(Tokenized.of([row.numpy() for row in rows]))
    weight = torch.randn(sum(lengths), 32, generator=generator)
    gradients = []
    wanted = bert(input_ids=ids, attention_mask=mask.long()).last_hidden_state[mask]
    for outputs in (wanted, bert.forward_packed(tokens)):
        torch.testing.assert_close(outputs, wanted, **CLOSE)
        bert.zero_grad()
        (outputs * weight).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in bert.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        scale = max(float(gradient.abs().max()), 1)
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-5 * scale, msg=name)


@pytest.fixture(scope="module")
def run(directory: Path) -> RunDirectory:
    """A run that keeps layers 0 and 2, with the recipe beside it."""
    recipe = write_recipe(directory.parent, directory, layers=[0, 2], max_length=64)
    ended = train(recipe)
    assert ended.status == 0, ended.err
    return RunDirectory(directory.parent / "runs" / "tiny")


def test_students_are_trained_and_saved_in_the_teachers_own_kind(run: RunDirectory, directory: Path) -> None:
    assert run.logged("negative_mse")[10] > run.logged("negative_mse")[0]
    teacher, kind = load_file(directory / "model.safetensors"), run.json("model/config.json")["model_type"]
    layers = "transformer.layer" if kind == "distilbert" else "encoder.layer"
    assert {name.replace(f"{layers}.1.", f"{layers}.2.") for name in run.weights} == {
        name for name in teacher if f"{layers}.1." not in name
    }
    path = str(run.path / "model")
    ours, theirs = Embedder.load(path, "cpu", "fp32"), SentenceTransformer(path, device="cpu")
    np.testing.assert_allclose(ours.encode(TEXT), theirs.encode(TEXT), atol=1e-5)
    write_report(run.path)
    card = (run.path / "model" / "README.md").read_text(encoding="utf-8")
    assert f"| Architecture | {kind.upper()} |" in card and "2 of the 3 layers" in card


def test_a_stopped_run_and_one_on_two_ranks_end_as_this_one_does(run: RunDirectory) -> None:
    recipe, test = run.path.parents[1] / "tiny.toml", english_sentences(20, seed=9)
    stop = functools.partial(hooks.signal_at_step, signal.SIGTERM, 7)
    assert train(recipe, "--name", "stopped", before=stop).status == 1
    assert train(recipe, "--name", "stopped", "--resume").status == 0
    assert_same_run(RunDirectory(run.path.with_name("stopped")), run)
    ended = forked_ranks(2, recipe, "--name", "two")
    assert [each.status for each in ended] == [0, 0], ended
    two, one = (Embedder.load(run.path.with_name(name) / "model", "cpu", "fp32") for name in ("two", "tiny"))
    np.testing.assert_allclose(two.encode(test), one.encode(test), atol=1e-4)


def test_onnx_files_embed_as_the_model_does(directory: Path, tmp_path: Path) -> None:
    """By ONNX Runtime, which writing them checks, and by OpenVINO."""
    pytest.importorskip("onnxscript"), pytest.importorskip("onnxruntime")
    from shortstack.distillation.export import padded, write_fp32, write_int8, write_openvino

    embedder = Embedder.load(directory, "cpu", "fp32")
    onnx, graph = tmp_path / "model.onnx", tmp_path / "model.xml"
    write_fp32(embedder, onnx)
    write_int8(embedder, onnx, tmp_path / "int8.onnx")
    inputs = padded(embedder, TEXT)
    pytest.importorskip("openvino", reason="openvino is not installed")
    write_openvino(embedder, onnx, graph)
    exact = compile_openvino(graph, {"INFERENCE_PRECISION_HINT": "f32"})
    np.testing.assert_allclose(exact(inputs)["sentence_embedding"], embedder.encode(TEXT), atol=1e-5)


def test_bf16_and_int8_compute_nearly_the_same(directory: Path) -> None:
    exact = torch.from_numpy(Embedder.load(directory, "cpu", "fp32").encode(TEXT))
    for precision in ("bf16", "int8"):
        try:
            found = torch.from_numpy(Embedder.load(directory, "cpu", precision).encode(TEXT))
        except InputError:
            continue  # this CPU can't
        assert torch.cosine_similarity(exact, found).min() > 0.98


def test_sentences_may_be_as_long_as_there_are_positions(directory: Path) -> None:
    edit(directory / "sentence_bert_config.json", max_seq_length=500)
    ours = Embedder.load(directory, "cpu", "fp32")
    edit(directory / "sentence_bert_config.json", max_seq_length=64)
    assert ours.settings.max_length == (80 if "distilbert" in str(directory) else 78)
    assert np.isfinite(ours.encode("the dog sees the cat " * 40)).all()
    with pytest.raises(InputError, match="positions"):
        ours.set_max_length(ours.settings.max_length + 1)


def test_far_positions_share_buckets() -> None:
    buckets = position_buckets(300, 32, torch.device("cpu"))
    assert buckets.min() == 0 and buckets.max() == 31
    assert buckets[10, :21].tolist() == [8, 8, 8, 7, 6, 5, 4, 3, 2, 1, 0, 17, 18, 19, 20, 21, 22, 23, 24, 24, 24]
    assert buckets[299, 0] == buckets[299, 171] == 15 and buckets[0, 299] == 31


def test_all_mpnet_base_v2_itself(mpnet_dir: Path) -> None:
    ours = Embedder.load(mpnet_dir, "cpu", "fp32")
    theirs = SentenceTransformer(str(mpnet_dir), device="cpu")
    assert ours.settings.max_length == 384 == theirs.max_seq_length
    np.testing.assert_allclose(ours.encode(TEXT[-30:]), theirs.encode(TEXT[-30:]), atol=1e-5)
