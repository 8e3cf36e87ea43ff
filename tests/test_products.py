"""Each CPU is asked for the products that suit it."""

import pytest
import torch

from shortstack.model.files import InputError
from shortstack.model.products import repacking_pays, resolve_precision


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
