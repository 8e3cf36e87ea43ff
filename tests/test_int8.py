"""Products of bytes compute what their rounding says, and int8 embeddings are near to fp32's, each by itself."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import english_sentences, make_bert_dir

from shortstack.model import Embedder, PackedTokens
from shortstack.model.engine.int8 import ByteProduct, Range, Rounding, rounding_of, split_large, to_bytes
from shortstack.model.engine.products import Linear
from shortstack.model.files import InputError
from shortstack.model.precision import cpu_has_int8
from shortstack.model.tensors import load_tensors, save_tensors

needs_int8 = pytest.mark.skipif(not cpu_has_int8(), reason="this CPU or torch has no int8 products")
TEXT = english_sentences(60)


@pytest.mark.parametrize("in_one_pass", [True, False])
def test_rounding_takes_ties_to_even_and_clamps(monkeypatch: pytest.MonkeyPatch, in_one_pass: bool) -> None:
    if not in_one_pass:
        monkeypatch.delattr(torch, "quantize_per_tensor")
    x_NI = torch.tensor([[-100.0, -0.5, 0.0, 0.25, 0.75, 1.0, 100.0]])
    found = to_bytes(x_NI, 0.5, 10)
    assert found.dtype == torch.uint8
    assert found.tolist() == [[0, 9, 10, 10, 12, 12, 210]]
    assert to_bytes(x_NI * 10, 0.5, 10).max() == 255


@pytest.mark.skipif(
    not hasattr(torch.ops.onednn, "qlinear_pointwise"), reason="this build of torch has no int8 products"
)
@pytest.mark.parametrize("activation", ["", "gelu", "relu", "silu"])
def test_a_product_is_exact_in_integers(activation: str) -> None:
    """Every second weight is 0: CPUs without int8 instructions add pairs in 16 bits, which so can't overflow."""
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(48, 32, generator=generator), torch.randn(48, generator=generator)
    weight[:, 1::2] = 0
    x_NI = torch.randn(20, 32, generator=generator) * 3 + 1
    smoothing = torch.rand(32, generator=generator) + 0.5
    low, high = (x_NI / smoothing).aminmax()
    scale = float(high - low) / 255
    rounding = Rounding(smoothing, scale, round(-float(low) / scale))

    q_NI = (x_NI / smoothing / scale + rounding.zero_point).round().clamp(0, 255) - rounding.zero_point
    scale_O = (weight * smoothing).abs().amax(dim=1) / 127
    wanted = q_NI @ (weight * smoothing / scale_O[:, None]).round().T * (scale * scale_O) + bias
    activate = {"": torch.nn.Identity(), "gelu": torch.nn.GELU("tanh"), "relu": F.relu, "silu": F.silu}[activation]
    linear = Linear(weight, bias, activation)
    torch.testing.assert_close(ByteProduct(linear, rounding)(x_NI), activate(wanted), atol=1e-3, rtol=1e-4)

    given = Rounding(torch.ones(48), 0.5, 10)
    if activation != "silu":  # which oneDNN computes in no product
        found = ByteProduct(linear, rounding, given)(x_NI).float()
        assert (found - (activate(wanted) / 0.5 + 10).clamp(0, 255)).abs().max() < 0.51


def test_smoothing_makes_inputs_alike_and_covers_their_range() -> None:
    inputs = Range(torch.tensor([-1.0, -30.0, -0.5]), torch.tensor([2.0, 3.0, 0.5]))
    rounding = rounding_of(inputs, torch.ones(4, 3), 0.75)
    high, low = inputs.high / rounding.smoothing, inputs.low / rounding.smoothing
    assert (255 - rounding.zero_point) * rounding.scale == pytest.approx(float(high.max()), abs=rounding.scale)
    assert -rounding.zero_point * rounding.scale == pytest.approx(float(low.min()), abs=rounding.scale)
    assert (
        4 * float((inputs.low / rounding.smoothing).abs().max() / (inputs.high / rounding.smoothing).min()) < 30 / 0.5
    )


@pytest.mark.parametrize("activation", [F.relu, F.gelu])
def test_split_channels_carry_together_what_one_would(activation: object) -> None:
    """Clamped as bytes are: with ReLU exactly, with GELU nearly, and with a range a fraction of what it was."""
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(96, 16, generator=generator), torch.randn(96, generator=generator)
    weight[5], bias[7] = weight[5] * 8, -30.0
    x_NI = torch.randn(200, 16, generator=generator)
    first, last = Linear(weight, bias, "relu"), Linear(torch.randn(16, 96, generator=generator), None)
    between_NI = activation(F.linear(x_NI, weight, bias))
    more, fewer, span = split_large(first, last, Range(*between_NI.aminmax(dim=0)))
    assert more.weight.shape == (98, 16) and fewer.weight.shape == (16, 98)
    limit = float(span.high[0])
    assert limit < 0.6 * between_NI.max()
    found = activation(F.linear(x_NI, more.weight, more.bias)).clamp(max=limit) @ fewer.weight.T
    tolerance = 1e-3 if activation is F.relu else 0.2 * float(last.weight.abs().max())
    torch.testing.assert_close(found, between_NI @ last.weight.T, atol=tolerance, rtol=0)


@needs_int8
@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_int8_is_near_to_fp32_and_depends_on_no_neighbour(tmp_path: Path, activation: str) -> None:
    embedder = Embedder.load(make_bert_dir(tmp_path, layers=3, hidden_act=activation), "cpu", "fp32")
    wanted = embedder.encode(TEXT)
    embedder.calibrate(TEXT)
    embedder.use_precision("int8")
    found = embedder.encode(TEXT)
    assert (found * wanted).sum(axis=1).mean() > 0.99
    assert not np.array_equal(found, wanted)
    for start in (0, 7, 30):  # alone and in other company
        np.testing.assert_allclose(embedder.encode(TEXT[start]), found[start], atol=1e-6)
        np.testing.assert_allclose(embedder.encode(TEXT[start : start + 9])[0], found[start], atol=1e-6)


@needs_int8
def test_minilm_keeps_997_of_1000(minilm_dir: Path) -> None:
    """By the text in the package, which is none of the text here."""
    embedder = Embedder.load(minilm_dir, "cpu", "fp32")
    wanted = embedder.encode(TEXT)
    assert (embedder.use_precision("int8").encode(TEXT) * wanted).sum(axis=1).mean() > 0.997


@needs_int8
def test_the_calibration_is_kept_and_goes_with_the_weights(tiny_model_dir: Path, tmp_path: Path) -> None:
    embedder = Embedder.load(tiny_model_dir, "cpu", "fp32")
    embedder.calibrate(TEXT)
    embedder.save(tmp_path / "model")
    wanted = embedder.use_precision("int8").encode(TEXT)
    np.testing.assert_array_equal(Embedder.load(tmp_path / "model", "cpu", "int8").encode(TEXT), wanted)
    embedder.train()(PackedTokens.pack(embedder.tokenize(TEXT[:1])))
    assert embedder.calibration is None

    path = tmp_path / "model" / "int8_calibration.safetensors"
    tensors, _ = load_tensors(path)
    save_tensors(path, {name: tensor for name, tensor in tensors.items() if not name.startswith("0.qkv")})
    (tmp_path / "model" / "checksums.json").unlink()
    with pytest.raises(InputError, match="int8_calibration.safetensors: has no '0.qkv.low'"):
        Embedder.load(tmp_path / "model", "cpu", "fp32")


@needs_int8
def test_ranges_of_other_weights_are_not_kept(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Neither in another precision nor in the files."""
    embedder = Embedder.load(tiny_model_dir, "cpu", "int8")
    embedder.load_state_dict({name: 3 * value for name, value in embedder.state_dict().items()})
    embedder.save(tmp_path / "model")
    assert embedder.calibration is None
    embedder = Embedder.load(tiny_model_dir, "cpu", "int8")
    before = embedder.calibration
    embedder.load_state_dict({name: 3 * value for name, value in embedder.state_dict().items()})
    assert embedder.use_precision("int8").calibration is not before


@needs_int8
def test_ranges_that_are_newer_than_the_weights_are_kept(tiny_model_dir: Path, tmp_path: Path) -> None:
    """As a run does: it encodes, loads the best weights, measures the ranges and saves."""
    embedder = Embedder.load(tiny_model_dir, "cpu", "fp32")
    embedder.encode(TEXT)
    embedder.load_state_dict({name: 3 * value for name, value in embedder.state_dict().items()})
    embedder.calibrate(TEXT)
    measured = embedder.calibration
    embedder.save(tmp_path / "model")
    assert (tmp_path / "model" / "int8_calibration.safetensors").exists()
    assert embedder.use_precision("int8").calibration is measured is not None
