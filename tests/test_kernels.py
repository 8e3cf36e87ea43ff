"""The Triton kernels give what their plain forms give: on a GPU, or on a CPU in Triton's interpreter.

TRITON_INTERPRET=1 python -m pytest tests/test_kernels.py      # with triton installed
"""

import math
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from shortstack.model import kernels
from shortstack.model.engine import gelu
from shortstack.model.tokens import tile_bounds

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_triton = pytest.mark.skipif(
    not kernels.runs_on(torch.zeros(1, device=DEVICE)),
    reason="needs a GPU, or triton installed and TRITON_INTERPRET=1",
)
needs_tiles = pytest.mark.skipif(
    not (gelu.is_hopper(torch.device("cuda")) if DEVICE == "cuda" else kernels.runs_on(torch.zeros(1))),
    reason="needs a Hopper GPU, or triton installed and TRITON_INTERPRET=1",
)
DTYPES = [torch.float32, torch.float16] if DEVICE == "cpu" else [torch.float32, torch.float16, torch.bfloat16]
ROUNDING = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
LENGTHS = [1, 2, 2, 3, 7, 7, 30, 33, 64]


def batch(dtype: torch.dtype, head_size: int = 32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random queries, keys and values of LENGTHS, the sentence of each token, and tiles, some of them of nothing."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(sum(LENGTHS), 3, 2, head_size, generator=generator).to(DEVICE, dtype)
    segments = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS)).int().to(DEVICE)
    tiles = np.append(tile_bounds(np.array(LENGTHS)), [sum(LENGTHS)] * 2).astype(np.int32)
    return qkv, segments, torch.from_numpy(tiles).to(DEVICE)


def by_sentence(qkv: torch.Tensor) -> torch.Tensor:
    """Attention of each sentence alone, in fp32."""
    out = []
    for part in qkv.float().split(LENGTHS):
        q, k, v = part.permute(1, 2, 0, 3)
        out.append(F.scaled_dot_product_attention(q, k, v).transpose(0, 1))
    return torch.cat(out)


def close(found: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> bool:
    found, wanted = found.detach().float(), wanted.detach().float()
    return float((found - wanted).norm() / wanted.norm()) < tolerance


def test_tiles_hold_whole_sentences_and_all_of_them() -> None:
    bounds = tile_bounds(np.array(LENGTHS))
    ends = set(np.cumsum([0, *LENGTHS]).tolist())
    assert bounds[0] == 0 and bounds[-1] == sum(LENGTHS) and set(bounds.tolist()) <= ends
    assert np.diff(bounds).min() > 0 and np.diff(bounds).max() <= kernels.TILE
    assert len(bounds) - 1 == 3  # 1 + ... + 30, then 33, then 64


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_size", [32, 64])
def test_attention_by_tiles_is_attention_by_sentence(dtype: torch.dtype, head_size: int) -> None:
    qkv, segments, tiles = batch(dtype, head_size)
    exact = qkv.float().requires_grad_()
    qkv.requires_grad_()
    found, wanted = kernels.attend_tiles(qkv, segments, tiles), by_sentence(exact)
    weights = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    (found.float() * weights).sum().backward()
    (wanted * weights).sum().backward()
    assert close(found, wanted, ROUNDING[dtype])
    assert qkv.grad is not None and exact.grad is not None and close(qkv.grad, exact.grad, 2 * ROUNDING[dtype])
    with torch.no_grad():
        assert torch.equal(kernels.attend_tiles(qkv, segments, tiles), found)


@needs_triton
def test_dropout_in_tiles_has_the_right_mean_and_its_own_gradient() -> None:
    """The mean over draws is attention without dropout; the gradient is that of the numbers that were kept."""
    qkv, segments, tiles = batch(torch.float32)
    draws = 40 if DEVICE == "cpu" else 2000
    torch.manual_seed(0)
    outs = torch.stack([kernels.attend_tiles(qkv, segments, tiles, 0.3) for _ in range(draws)])
    wanted = by_sentence(qkv)
    deviation = float((outs.mean(0) - wanted).norm() / (outs.std(0).norm() / math.sqrt(draws)))
    assert 0.8 < deviation < 1.2  # of the error that so many draws have by chance
    assert not torch.equal(outs[0], outs[1])
    alone = outs[:, 0]  # a sentence of one token: its one weight is kept or not
    share = float((alone == 0).all(-1).float().mean())
    assert abs(share - 0.3) < 4 * math.sqrt(0.21 / (2 * draws))

    qkv.requires_grad_()
    direction = torch.randn(qkv.shape, generator=torch.Generator().manual_seed(2)).to(DEVICE)

    def value(at: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)
        return (kernels.attend_tiles(at, segments, tiles, 0.3) * torch.arange(32, device=DEVICE)).sum()

    value(qkv).backward()
    step = 1e-2
    numeric = (value(qkv.detach() + step * direction) - value(qkv.detach() - step * direction)) / (2 * step)
    assert qkv.grad is not None
    torch.testing.assert_close((qkv.grad * direction).sum(), numeric, rtol=2e-2, atol=0.5)


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("dimensions", [32, 48])
def test_add_and_norm_is_the_plain_form(dtype: torch.dtype, dimensions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(DEVICE)

    product, residual = random(300, dimensions).to(dtype), 3 * random(300, dimensions)
    weight, bias, of_stream = random(dimensions), random(dimensions), random(300, dimensions)

    def outcome() -> list[torch.Tensor]:
        leaves = [each.clone().requires_grad_() for each in (product, residual, weight, bias)]
        stream, half = kernels.add_and_norm(*leaves, 1e-5)
        ((stream * of_stream).sum() + half.float().square().sum()).backward()
        return [stream.detach(), half.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]

    found, found_half = outcome(), kernels.add_and_norm_half(product, residual.to(dtype), weight, bias, 1e-5)
    monkeypatch.setattr(kernels, "runs_on", lambda tensor: False)
    tolerances = [1e-6, *[2 * ROUNDING[dtype]] * 5]
    for one, other, tolerance in zip(outcome(), found, tolerances, strict=True):
        assert one.dtype == other.dtype and close(one, other, tolerance)
    plain = F.layer_norm(product.float() + residual.to(dtype).float(), (dimensions,), weight, bias, 1e-5)
    assert found_half.dtype == dtype and close(found_half, plain, ROUNDING[dtype])


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES)
def test_adamw_is_torchs(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(5000, generator=generator).to(DEVICE)
    reference = torch.nn.Parameter(weights.clone())
    theirs = torch.optim.AdamW([reference], lr=1e-2, weight_decay=0.1)
    half = weights if dtype == torch.float32 else weights.to(dtype)
    moments = torch.zeros_like(weights), torch.zeros_like(weights)
    for step in range(1, 4):
        gradients = torch.randn(5000, generator=generator).to(DEVICE, dtype)
        reference.grad = gradients.float() / 3
        theirs.step()
        scalars = torch.tensor([1e-2, 3.0, 1 - 0.9**step, 1 - 0.999**step, 1.0], device=DEVICE)
        kernels.adamw((weights, half, gradients, *moments), scalars, (0.9, 0.999), 1e-8, 0.1)
        torch.testing.assert_close(weights, reference.data, rtol=1e-5, atol=1e-6)
        assert torch.equal(half, weights.to(dtype))
    before, scalars[4] = weights.clone(), 0.0
    kernels.adamw((weights, half, gradients * math.nan, *moments), scalars, (0.9, 0.999), 1e-8, 0.1)
    assert torch.equal(weights, before) and all(moment.isfinite().all() for moment in moments)


@needs_tiles
@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("tiling", gelu.TILINGS)
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(128, 64, 256), (200, 136, 264), (1, 8, 8)])
def test_gelu_within_its_product_is_the_plain_form(
    dtype: torch.dtype, tiling: gelu.Tiling, rows: int, inputs: int, outputs: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = (rows, inputs), (outputs, inputs), (outputs,)
    half = [torch.randn(shape, generator=generator).to(DEVICE, dtype) for shape in shapes]
    found, wanted = gelu.tiled(*half, tiling), gelu.plain(*(tensor.float() for tensor in half))
    assert found.dtype == dtype and close(found, wanted, ROUNDING[dtype])
    assert close(gelu.plain(*half), wanted, ROUNDING[dtype])


@needs_tiles
def test_gelu_by_a_polynomial_is_right_to_the_last_bit() -> None:
    """For all y from -8 to 8 in steps of 1 / 1024: row and column of one tile give a part of y each."""
    x, weight = torch.zeros(128, 8), torch.zeros(128, 8)
    x[:, 0], weight[:, 0] = (torch.arange(128) - 64) / 8, 1
    bias = torch.arange(128) / 1024
    y = x[:, :1].double() + bias
    found = gelu.tiled(*(tensor.to(DEVICE, torch.float16) for tensor in (x, weight, bias)), gelu.TILINGS[0])
    wanted = y * torch.special.ndtr(y)
    torch.testing.assert_close(found.double().cpu(), wanted, rtol=2**-11 + 1e-5, atol=2**-25 + 1e-8)

    x[:4, 0] = torch.tensor([math.nan, 60000.0, -60000.0, math.inf])  # what cannot be embedded must stay visible
    found = gelu.tiled(*(tensor.to(DEVICE, torch.float16) for tensor in (x, 2 * weight, bias)), gelu.TILINGS[0])
    assert not found[[0, 1, 3]].isfinite().any() and not found[2].any()


@pytest.mark.parametrize("winner", [None, *gelu.TILINGS])
def test_the_faster_form_is_taken_and_timed_once(winner: gelu.Tiling | None, monkeypatch: pytest.MonkeyPatch) -> None:
    x_NI, weight, bias = torch.randn(3, 8), torch.randn(16, 8), torch.randn(16)
    capturing, timed, used = True, [], []
    failing = next(tiling for tiling in gelu.TILINGS if tiling != winner)

    def do_bench(work: Callable[[], object], **_: object) -> float:
        timed.append(work())
        if used[-1] == failing:
            raise RuntimeError(f"out of shared memory: {used.pop()}")
        return 1.0 if used.pop() == winner else 2.0

    def form(tiling: gelu.Tiling | None) -> torch.Tensor:
        used.append(tiling)
        return x_NI

    monkeypatch.setattr(gelu, "TIMES", {})
    monkeypatch.setattr(gelu, "tiles_fit", lambda *_: True)
    monkeypatch.setattr(gelu, "tiled", lambda x_NI, weight, bias, tiling: form(tiling))
    monkeypatch.setattr(gelu, "plain", lambda x_NI, weight, bias: form(None))
    monkeypatch.setattr(gelu, "triton", SimpleNamespace(testing=SimpleNamespace(do_bench=do_bench)))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    gelu.linear_gelu(x_NI, weight, bias)
    assert used == [None] and not timed and not gelu.TIMES
    capturing = False
    for _ in range(2):
        gelu.linear_gelu(x_NI, weight, bias)
    assert used == [None, winner, winner] and len(timed) == 1 + len(gelu.TILINGS)


@pytest.mark.parametrize(
    ("rows", "inputs", "dtype", "fits"),
    [
        (gelu.LEAST_ROWS, 384, torch.float16, True),
        (gelu.LEAST_ROWS, 384, torch.bfloat16, True),
        (gelu.LEAST_ROWS, 384, torch.float32, False),
        (gelu.LEAST_ROWS - 1, 384, torch.float16, False),
        (gelu.LEAST_ROWS, 388, torch.float16, False),
    ],
)
def test_tiles_are_for_many_rows_in_half_precision(
    rows: int, inputs: int, dtype: torch.dtype, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x_NI, weight = torch.empty(rows, inputs, dtype=dtype), torch.empty(1536, inputs, dtype=dtype)
    assert not gelu.tiles_fit(x_NI, weight)  # on a CPU
    monkeypatch.setattr(gelu, "runs_on", lambda tensor: True)
    monkeypatch.setattr(gelu, "is_hopper", lambda device: True)
    assert gelu.tiles_fit(x_NI, weight) is fits
