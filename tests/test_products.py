"""Each CPU is asked for the products that suit it, and all of them compute the same."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from shortstack.model.engine.products import Linear, Product, RepackedProduct, repacking_pays
from shortstack.model.files import InputError
from shortstack.model.precision import resolve_precision


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


@pytest.mark.parametrize("kind", [Product, RepackedProduct])  # which of them is taken depends on the CPU
@pytest.mark.parametrize("activation", ["", "gelu", "relu", "silu"])  # the last is one that oneDNN does not fuse
def test_every_product_computes_what_torch_does(kind: type[Product], activation: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x_NI, weight = torch.randn(7, 32, generator=generator), torch.randn(48, 32, generator=generator)
    bias, residual_NO = torch.randn(48, generator=generator), torch.randn(7, 48, generator=generator)
    plain = F.linear(x_NI, weight, bias)
    wanted = getattr(F, activation)(plain) if activation else plain
    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(kind(Linear(weight, bias, activation), torch.float32)(x_NI), wanted, **close)
    added = kind(Linear(weight, bias), torch.float32)(x_NI, residual_NO)
    torch.testing.assert_close(added, plain + residual_NO, **close)


def test_importing_the_model_leaves_the_environment_alone() -> None:
    others = "import torch, transformers; from transformers import BertModel, AutoTokenizer; "
    code = "import os; before = dict(os.environ); import shortstack.model.embedder; assert dict(os.environ) == before"
    subprocess.run([sys.executable, "-c", others + code], check=True, cwd=Path(__file__).parents[1])
