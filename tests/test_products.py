"""Integer products compute what their scales say, and each CPU is asked for the products that suit it."""

import pytest
import torch

from model.bert import Linear
from model.files import InputError
from model.products import quantise, quantised_product, repacking_pays, resolve_precision


@pytest.mark.parametrize("in_one_pass", [True, False])
def test_quantise_rounds_ties_to_even_and_clamps(monkeypatch: pytest.MonkeyPatch, in_one_pass: bool) -> None:
    if not in_one_pass:
        monkeypatch.delattr(torch, "quantize_per_tensor")
    x_NI = torch.tensor([[-100.0, -0.5, 0.0, 0.25, 0.75, 1.0, 100.0]])
    found = quantise(x_NI, 0.5, 10)
    assert found.dtype == torch.uint8
    assert found.tolist() == [[0, 9, 10, 10, 12, 12, 210]]
    assert quantise(x_NI * 10, 0.5, 10).max() == 255


@pytest.mark.skipif(
    not hasattr(torch.ops.onednn, "qlinear_pointwise"), reason="this build of torch has no int8 products"
)
@pytest.mark.parametrize("activation", ["", "gelu", "relu"])
def test_int8_product_is_exact_in_integers(activation: str) -> None:
    """Every second weight is 0: CPUs without int8 instructions add pairs in 16 bits, which so can't overflow."""
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(48, 32, generator=generator), torch.randn(48, generator=generator)
    weight[:, 1::2] = 0
    x_NI = torch.randn(20, 32, generator=generator) * 3 + 1

    scale = float(x_NI.max() - x_NI.min()) / 255
    zero_point = round(-float(x_NI.min()) / scale)
    scale_O = weight.abs().amax(dim=1) / 127
    q_NI = (x_NI / scale + zero_point).round().clamp(0, 255) - zero_point
    wanted = q_NI @ (weight / scale_O[:, None]).round().T * (scale * scale_O) + bias
    activate = {"": torch.nn.Identity(), "gelu": torch.nn.GELU(), "relu": torch.nn.ReLU()}[activation]
    torch.testing.assert_close(
        quantised_product(Linear(weight, bias, activation))(x_NI), activate(wanted), atol=1e-3, rtol=1e-4
    )


def test_int8_is_refused_without_the_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    with pytest.raises(InputError, match="precision: int8 needs int8 instructions"):
        resolve_precision("int8", torch.device("cpu"))


@pytest.mark.parametrize(
    ("avx512", "mkl", "pays"), [(True, True, True), (True, False, True), (False, False, True), (False, True, False)]
)
def test_fp32_weights_are_repacked_but_where_mkl_is_faster(
    monkeypatch: pytest.MonkeyPatch, avx512: bool, mkl: bool, pays: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_f": avx512})
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    assert repacking_pays("fp32") is pays
