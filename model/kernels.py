"""Triton kernels for a GPU, each behind one function that has a plain form beside it.

    attend_tiles    attention of short packed sentences, one program for a tile of whole sentences and a head
    add_and_norm    residual + product, then the layer norm, with a half copy of the result, in one pass
    adamw           a step of AdamW over flat weights, from half gradients, with a half copy of the result

Encoding has one more, GELU within its product (engine/gelu.py).

torch's variable-length kernel computes 128 x 128 scores for each sentence and head, however short the sentence; a tile
of 64 tokens holds five sentences of 12. Norms and AdamW do little arithmetic: they cost what they read and write.

CUDA builds of torch bring Triton. Elsewhere, and where a shape does not fit, the plain forms compute the same. With
TRITON_INTERPRET=1 and Triton installed the kernels run on a CPU, number by number, for tests.

Shapes: N tokens, D hidden dimensions, H heads, E = D / H. In the kernels `of_x` is the gradient of x, `to_x` is where
it is written.
"""

import math
import os
from typing import Any

import torch
import torch.nn.functional as F

from shortstack.model.tokens import TILE

try:
    import triton
    import triton.language as tl
except ImportError:  # a CPU build of torch
    triton = None

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def runs_on(tensor: torch.Tensor) -> bool:
    """Whether Triton's kernels can compute with this tensor."""
    return triton is not None and (INTERPRETED or (tensor.is_cuda and torch.version.hip is None))


if triton is not None:

    @triton.jit
    def _attend(
        qkv, out, lse, segments, tiles, seed, keep, scale,
        H: tl.constexpr, E: tl.constexpr, TILE: tl.constexpr, DROP: tl.constexpr,
    ):  # fmt: skip
        tile, head = tl.program_id(0), tl.program_id(1)
        start, end = tl.load(tiles + tile), tl.load(tiles + tile + 1)
        if start < end:
            rows = start + tl.arange(0, TILE)
            mask = (rows < end)[:, None]
            _, q, k, v = _qkv_of(qkv, rows, mask, head, H, E)
            sentence = tl.load(segments + rows, mask=rows < end, other=-1)
            scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
            scores = tl.where(sentence[:, None] == sentence[None, :], scores, float("-inf"))
            largest = tl.max(scores, 1)
            weights = tl.exp(scores - largest[:, None])
            sums = tl.sum(weights, 1)
            if DROP:
                weights *= _kept(seed, tile, head, keep, H, TILE)
            context = tl.dot(weights.to(v.dtype), v, input_precision="ieee") / sums[:, None]
            to = rows[:, None] * (H * E) + head * E + tl.arange(0, E)[None, :]
            tl.store(out + to, context.to(out.dtype.element_ty), mask=mask)
            tl.store(lse + rows * H + head, largest + tl.log(sums), mask=rows < end)

    @triton.jit
    def _qkv_of(qkv, rows, mask, head, H: tl.constexpr, E: tl.constexpr):
        """Where a head's queries of these rows are, H * E before the keys, and its queries, keys and values."""
        offsets = rows[:, None] * (3 * H * E) + head * E + tl.arange(0, E)[None, :]
        q = tl.load(qkv + offsets, mask=mask, other=0.0)
        k = tl.load(qkv + offsets + H * E, mask=mask, other=0.0)
        v = tl.load(qkv + offsets + 2 * H * E, mask=mask, other=0.0)
        return offsets, q, k, v

    @triton.jit
    def _kept(seed, tile, head, keep, H: tl.constexpr, TILE: tl.constexpr):
        """1 / keep for the attention weights of a tile that are kept, 0 for the others."""
        cells = tl.arange(0, TILE)[:, None] * TILE + tl.arange(0, TILE)[None, :]
        drawn = tl.rand(tl.load(seed), (tile * H + head) * (TILE * TILE) + cells)
        return tl.where(drawn < keep, 1 / keep, 0.0)

    @triton.jit
    def _attend_backward(
        qkv, out, gradient, lse, segments, tiles, seed, to_qkv, keep, scale,
        H: tl.constexpr, E: tl.constexpr, TILE: tl.constexpr, DROP: tl.constexpr,
    ):  # fmt: skip
        tile, head = tl.program_id(0), tl.program_id(1)
        start, end = tl.load(tiles + tile), tl.load(tiles + tile + 1)
        if start < end:
            rows = start + tl.arange(0, TILE)
            mask = (rows < end)[:, None]
            offsets, q, k, v = _qkv_of(qkv, rows, mask, head, H, E)
            out_offsets = rows[:, None] * (H * E) + head * E + tl.arange(0, E)[None, :]
            o = tl.load(out + out_offsets, mask=mask, other=0.0).to(tl.float32)
            g = tl.load(gradient + out_offsets, mask=mask, other=0.0)
            sentence = tl.load(segments + rows, mask=rows < end, other=-1)
            logs = tl.load(lse + rows * H + head, mask=rows < end, other=0.0)
            together = (sentence[:, None] == sentence[None, :]) & mask
            scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
            weights = tl.where(together, tl.exp(scores - logs[:, None]), 0.0)
            of_weights = tl.dot(g, tl.trans(v), input_precision="ieee")
            used = weights
            if DROP:
                kept = _kept(seed, tile, head, keep, H, TILE)
                used = weights * kept
                of_weights *= kept
            of_v = tl.dot(tl.trans(used.to(g.dtype)), g, input_precision="ieee")
            of_scores = weights * (of_weights - tl.sum(o * g.to(tl.float32), 1)[:, None]) * scale
            of_scores = of_scores.to(q.dtype)
            of_q = tl.dot(of_scores, k, input_precision="ieee")
            of_k = tl.dot(tl.trans(of_scores), q, input_precision="ieee")
            kind = to_qkv.dtype.element_ty
            tl.store(to_qkv + offsets, of_q.to(kind), mask=mask)
            tl.store(to_qkv + offsets + H * E, of_k.to(kind), mask=mask)
            tl.store(to_qkv + offsets + 2 * H * E, of_v.to(kind), mask=mask)

    @triton.jit
    def _add_and_norm(
        product, residual, weight, bias, stream, half, total, statistics, D, eps,
        COLUMNS: tl.constexpr, TRAINS: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        columns = tl.arange(0, COLUMNS)
        mask = columns < D
        offsets = row * D + columns
        x = tl.load(product + offsets, mask=mask, other=0.0).to(tl.float32)
        x += tl.load(residual + offsets, mask=mask, other=0.0).to(tl.float32)
        mean = tl.sum(x, 0) / D
        centred = tl.where(mask, x - mean, 0.0)
        inverse = 1 / tl.sqrt(tl.sum(centred * centred, 0) / D + eps)
        w = tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
        b = tl.load(bias + columns, mask=mask, other=0.0).to(tl.float32)
        y = centred * inverse * w + b
        tl.store(half + offsets, y.to(half.dtype.element_ty), mask=mask)
        if TRAINS:
            tl.store(stream + offsets, y, mask=mask)
            tl.store(total + offsets, x, mask=mask)
            tl.store(statistics + 2 * row, mean)
            tl.store(statistics + 2 * row + 1, inverse)

    @triton.jit
    def _add_and_norm_backward(
        of_stream, of_half, total, statistics, weight, to_product, to_residual, sums, N, D,
        COLUMNS: tl.constexpr,
    ):  # fmt: skip
        """Each program takes every so many rows, and leaves its sums for the weight's and the bias's gradient."""
        program, programs = tl.program_id(0), tl.num_programs(0)
        columns = tl.arange(0, COLUMNS)
        mask = columns < D
        w = tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
        of_weight = tl.zeros([COLUMNS], tl.float32)
        of_bias = tl.zeros([COLUMNS], tl.float32)
        for row in range(program, N, programs):
            offsets = row * D + columns
            g = tl.load(of_stream + offsets, mask=mask, other=0.0)
            g += tl.load(of_half + offsets, mask=mask, other=0.0).to(tl.float32)
            mean, inverse = tl.load(statistics + 2 * row), tl.load(statistics + 2 * row + 1)
            normal = tl.where(mask, (tl.load(total + offsets, mask=mask, other=0.0) - mean) * inverse, 0.0)
            of_weight += g * normal
            of_bias += g
            scaled = g * w
            x = inverse * (scaled - tl.sum(scaled, 0) / D - normal * (tl.sum(scaled * normal, 0) / D))
            tl.store(to_product + offsets, x.to(to_product.dtype.element_ty), mask=mask)
            tl.store(to_residual + offsets, x, mask=mask)
        tl.store(sums + program * D + columns, of_weight, mask=mask)
        tl.store(sums + (programs + program) * D + columns, of_bias, mask=mask)

    @triton.jit
    def _adamw(
        weights, half, gradients, means, squares, scalars, n, beta1, beta2, eps, decay,
        COPIES: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        """scalars: rate, what gradients are divided by, both bias corrections, 1 to take the step."""
        if tl.load(scalars + 4) > 0:
            rate, divisor = tl.load(scalars), tl.load(scalars + 1)
            correction1, correction2 = tl.load(scalars + 2), tl.load(scalars + 3)
            offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
            mask = offsets < n
            g = tl.load(gradients + offsets, mask=mask, other=0.0).to(tl.float32) / divisor
            w = tl.load(weights + offsets, mask=mask, other=0.0) * (1 - rate * decay)
            mean = tl.load(means + offsets, mask=mask, other=0.0)
            square = tl.load(squares + offsets, mask=mask, other=0.0)
            mean += (1 - beta1) * (g - mean)
            square = beta2 * square + (1 - beta2) * g * g
            w -= rate * (mean / correction1) / (tl.sqrt(square / correction2) + eps)
            tl.store(weights + offsets, w, mask=mask)
            tl.store(means + offsets, mean, mask=mask)
            tl.store(squares + offsets, square, mask=mask)
            if COPIES:
                tl.store(half + offsets, w.to(half.dtype.element_ty), mask=mask)


# -- attention -------------------------------------------------------------------------------------------------------


def tiles_fit(qkv_N3HE: torch.Tensor, longest: int) -> bool:
    """Whether `attend_tiles` computes this: sentences of at most a tile, heads of 16, 32, 64 or 128."""
    return longest <= TILE and qkv_N3HE.shape[-1] in (16, 32, 64, 128) and runs_on(qkv_N3HE)


class AttendTiles(torch.autograd.Function):
    """See `attend_tiles`."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, qkv: torch.Tensor, segments: torch.Tensor, tiles: torch.Tensor, dropout: float
    ) -> torch.Tensor:
        N, _, H, E = qkv.shape
        qkv = qkv.contiguous()
        out, lse = qkv.new_empty(N, H, E), qkv.new_empty(N, H, dtype=torch.float32)
        seed = torch.randint(2**31 - 1, (1,), device=qkv.device) if dropout else segments  # else not read
        _attend[(len(tiles) - 1, H)](
            qkv, out, lse, segments, tiles, seed, 1 - dropout, 1 / math.sqrt(E), H, E, TILE, dropout > 0, num_warps=4
        )
        ctx.save_for_backward(qkv, out, lse, segments, tiles, seed)
        ctx.dropout = dropout
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        qkv, out, lse, segments, tiles, seed = ctx.saved_tensors
        _, _, H, E = qkv.shape
        of_qkv = torch.empty_like(qkv)
        _attend_backward[(len(tiles) - 1, H)](
            qkv, out, gradient.contiguous(), lse, segments, tiles, seed, of_qkv, 1 - ctx.dropout, 1 / math.sqrt(E),
            H, E, TILE, ctx.dropout > 0, num_warps=4,
        )  # fmt: skip
        return of_qkv, None, None, None


def attend_tiles(
    qkv_N3HE: torch.Tensor, segments_N: torch.Tensor, tiles: torch.Tensor, dropout: float = 0.0
) -> torch.Tensor:
    """Self-attention within each sentence: (N, H, E).

    Args:
        qkv_N3HE: queries, keys and values.
        segments_N: the number of each token's sentence, int32.
        tiles: where the tiles begin, and the end of the last, int32: each at most TILE tokens, whole sentences in all,
            every token in one. Equal neighbours are a tile of nothing.
        dropout: probability of dropping an attention weight.

    Source: the softmax kept as its log-sum for the backward pass is FlashAttention's (Dao et al., 2022,
    https://arxiv.org/abs/2205.14135); a tile needs one block only.
    """
    if torch.is_grad_enabled() and qkv_N3HE.requires_grad:
        return AttendTiles.apply(qkv_N3HE, segments_N, tiles, dropout)
    return AttendTiles.forward(_NoContext(), qkv_N3HE, segments_N, tiles, dropout)


class _NoContext:
    """Stands for autograd's context where nothing is kept."""

    def save_for_backward(self, *tensors: torch.Tensor) -> None:
        pass


# -- residual and norm -----------------------------------------------------------------------------------------------


class AddAndNorm(torch.autograd.Function):
    """See `add_and_norm`."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, product: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        N, D = product.shape
        product, residual = product.contiguous(), residual.contiguous()
        stream, half, total = torch.empty_like(residual), torch.empty_like(product), torch.empty_like(residual)
        statistics = residual.new_empty(N, 2)
        _add_and_norm[(N,)](
            product, residual, weight, bias, stream, half, total, statistics, D, eps,
            triton.next_power_of_2(D), True, num_warps=4,
        )  # fmt: skip
        ctx.save_for_backward(total, statistics, weight)
        ctx.dtype = product.dtype
        return stream, half

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, of_stream: torch.Tensor, of_half: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        total, statistics, weight = ctx.saved_tensors
        N, D = total.shape
        of_product, of_residual = total.new_empty(N, D, dtype=ctx.dtype), torch.empty_like(total)
        programs = min(N, 264)  # two for each of an H100's 132 multiprocessors
        sums = total.new_empty(2, programs, D)
        _add_and_norm_backward[(programs,)](
            of_stream.contiguous(), of_half.contiguous(), total, statistics, weight, of_product, of_residual, sums,
            N, D, triton.next_power_of_2(D), num_warps=4,
        )  # fmt: skip
        of_weight, of_bias = sums.sum(1).unbind()
        return of_product, of_residual, of_weight, of_bias, None


def add_and_norm(
    product_ND: torch.Tensor, residual_ND: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The layer norm of residual + product, in fp32 and in the product's type: both (N, D).

    Args:
        product_ND: in half precision or fp32.
        residual_ND: in fp32.

    Source: layer norm is Ba et al., 2016 (https://arxiv.org/abs/1607.06450).
    """
    if product_ND.dtype != torch.float32 and runs_on(product_ND):
        return AddAndNorm.apply(product_ND, residual_ND, weight, bias, eps)
    with torch.autocast(product_ND.device.type, enabled=False):
        stream_ND = F.layer_norm(residual_ND + product_ND, weight.shape, weight, bias, eps)
    return stream_ND, stream_ND.to(product_ND.dtype)


def add_and_norm_half(
    product_ND: torch.Tensor, residual_ND: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> torch.Tensor:
    """The same for encoding, all in one type: (N, D). The sum itself is not rounded to it."""
    if product_ND.dtype == torch.float32 or not runs_on(product_ND):
        return F.layer_norm(residual_ND + product_ND, weight.shape, weight, bias, eps)
    N, D = product_ND.shape
    half = torch.empty_like(product_ND)
    _add_and_norm[(N,)](
        product_ND, residual_ND, weight, bias, half, half, half, half, D, eps, triton.next_power_of_2(D), False,
        num_warps=4,
    )  # fmt: skip
    return half


# -- AdamW -----------------------------------------------------------------------------------------------------------


def adamw(
    arrays: tuple[torch.Tensor, ...], scalars: torch.Tensor, betas: tuple[float, float], eps: float, decay: float
) -> None:
    """One step of AdamW in place, in one pass over the memory.

    Args:
        arrays: the weights, (n,) fp32; where a copy in its type is written, (n,), the weights again for none; the
            gradients, (n,) in any type; the first and the second moments, (n,) fp32 each.
        scalars: (5,) fp32: learning rate, what the gradients are divided by, the two bias corrections, and 1 to take
            the step or 0 to change nothing.
    """
    weights, half, gradients, means, squares = arrays
    n, block = weights.numel(), 2048
    _adamw[(triton.cdiv(n, block),)](
        weights, half, gradients, means, squares, scalars, n, *betas, eps, decay, half.dtype != torch.float32, block,
        num_warps=8,
    )  # fmt: skip
