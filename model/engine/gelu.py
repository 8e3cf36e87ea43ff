"""The first product of an MLP with its bias and its GELU in one pass, by a Triton kernel on a Hopper GPU.

GELU on its own reads and writes (N, O) numbers for little arithmetic. Within the product it moves none, but then the
product must be as fast as cuBLAS's, which depends on shape and GPU. So `linear_gelu` times both once, and keeps the
faster.

Shapes: N tokens, I inputs, O outputs.
"""

import math
from functools import cache, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F

from shortstack.model.kernels import runs_on

try:
    import triton
    import triton.language as tl
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError:  # a CPU build of torch
    triton = None

if triton is not None:

    @triton.jit
    def _linear_gelu(
        x, weight, bias, out, outputs, inputs, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
    ):  # fmt: skip
        """One program for a tile of the output. Neighbours share rows of x, and the weights stay in the cache.

        x, weight and out are descriptors, of which the GPU copies whole tiles by itself (TMA): what lies outside is
        read as 0 and never written.
        """
        column, row = tl.program_id(0) * COLUMNS, tl.program_id(1) * ROWS
        sums = tl.zeros([ROWS, COLUMNS], tl.float32)
        for k in range(0, inputs, INNER):
            sums = tl.dot(x.load([row, k]), weight.load([column, k]).T, sums)
        columns = column + tl.arange(0, COLUMNS)
        y = sums + tl.load(bias + columns, mask=columns < outputs, other=0.0).to(tl.float32)[None, :]
        out.store([row, column], _gelu(y).to(out.dtype))

    @triton.jit
    def _gelu(y):
        """y Φ(y) = max(y, 0) - |y| Φ(-|y|), with log2 Φ(-a) by a polynomial: right to 4 parts in a million.

        The polynomial has the smallest largest error from 0 to 6.5, by linear programming; beyond, the term vanishes.
        CUDA's erff takes three times as many instructions, and registers that the tile needs for its sums.
        """
        a = tl.abs(y)
        p = ((-1.3263244e-6 * a + 5.3711548e-5) * a - 8.8310504e-4) * a + 8.3688824e-3
        p = (((p * a - 5.3755444e-2) * a - 4.5860359e-1) * a - 1.1512171) * a - 0.99999648
        return tl.maximum(y, 0.0) - a * tl.exp2(p)


class Tiling(NamedTuple):
    """The part of the output that a program computes, and with what."""

    rows: int
    columns: int
    warps: int
    stages: int  # how many times INNER inputs it holds in shared memory


INNER = 64
# Small tiles share a multiprocessor: one computes its GELU while another multiplies. A large one reads less.
# Triton compiles them for sm_90 to wgmma, without a spilled register, in 64, 96 and 192 KB of shared memory.
TILINGS = (Tiling(128, 128, 4, 2), Tiling(128, 128, 4, 3), Tiling(128, 256, 8, 4))
LEAST_ROWS = 8192  # for fewer, comparing takes longer than it can save
# Milliseconds of each tiling and of the plain form (None), by device, type, O and I.
TIMES: dict[tuple[torch.device, torch.dtype, int, int], dict[Tiling | None, float]] = {}


def linear_gelu(x_NI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor) -> torch.Tensor:
    """GELU(x Wᵀ + b), without a gradient: (N, O).

    Where a tiling may win, the first product of these weights' shape is computed in all forms, and the fastest is
    taken from then on; a tiling that fails is left out. They differ by rounding only: the plain form rounds what goes
    into GELU as well.

    Source: GELU is Hendrycks and Gimpel, 2016 (https://arxiv.org/abs/1606.08415), here with the exact Φ.
    """
    tiling = fastest(x_NI, weight_OI, bias_O) if tiles_fit(x_NI, weight_OI) else None
    if tiling is None:
        return plain(x_NI, weight_OI, bias_O)
    return tiled(x_NI, weight_OI, bias_O, tiling)


def plain(x_NI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor) -> torch.Tensor:
    """`linear_gelu` in two passes."""
    return F.gelu(F.linear(x_NI, weight_OI, bias_O))


def tiled(x_NI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor, tiling: Tiling) -> torch.Tensor:
    """`linear_gelu` in one pass."""
    N, (outputs, inputs) = len(x_NI), weight_OI.shape
    rows, columns, warps, stages = tiling
    out_NO = x_NI.new_empty(N, outputs)
    _linear_gelu[(triton.cdiv(outputs, columns), triton.cdiv(N, rows))](
        TensorDescriptor.from_tensor(x_NI.contiguous(), [rows, INNER]),
        TensorDescriptor.from_tensor(weight_OI, [columns, INNER]),
        bias_O,
        TensorDescriptor.from_tensor(out_NO, [rows, columns]),
        outputs, inputs, rows, columns, INNER, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out_NO


def tiles_fit(x_NI: torch.Tensor, weight_OI: torch.Tensor) -> bool:
    """Whether a tiling may win: many rows in half precision, sizes that descriptors take, and a GPU that has TMA."""
    is_large = len(x_NI) >= LEAST_ROWS and x_NI.dtype in (torch.float16, torch.bfloat16)
    is_aligned = all(size % 8 == 0 for size in weight_OI.shape)
    return is_large and is_aligned and runs_on(x_NI) and is_hopper(x_NI.device)


@cache
def is_hopper(device: torch.device) -> bool:
    """Whether a device is the kind of GPU that the tilings were compiled and sized for."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


def fastest(x_NI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor) -> Tiling | None:
    """The form that was fastest when such weights first met many rows; None is the plain one."""
    key = (x_NI.device, x_NI.dtype, *weight_OI.shape)
    if key not in TIMES:
        if torch.cuda.is_current_stream_capturing():
            return None  # nothing can be timed while a CUDA graph is recorded
        times: dict[Tiling | None, float] = {}
        for form in (*TILINGS, None):  # the plain form last: at first a GPU may still be at a low clock
            work = partial(tiled, tiling=form) if form else plain
            try:
                times[form] = triton.testing.do_bench(partial(work, x_NI, weight_OI, bias_O), warmup=5, rep=15)
            except Exception:  # of a compiler or a driver that this tiling was not tried with
                if form is None:
                    raise
                times[form] = math.inf
        TIMES[key] = times
    return min(TIMES[key], key=TIMES[key].__getitem__)
