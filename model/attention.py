"""Self-attention of packed sentences: one kernel for the whole batch on a GPU, else one call per run of equal lengths.

On a GPU short sentences go through our own kernel, several to a tile (kernels.py), longer ones through torch's.

Shapes: B sentences, T tokens a sentence, N tokens of the whole batch, H heads, E dimensions a head.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F

from shortstack.model.attention_on_cpu import attention_by_products, products_are_faster
from shortstack.model.kernels import attend_tiles, tiles_fit
from shortstack.model.tokens import PackedTokens


def attention(
    qkv_N3HE: torch.Tensor,
    tokens: PackedTokens,
    first_only: bool = False,
    dropout: float = 0.0,
    bias_HTT: torch.Tensor | None = None,
) -> torch.Tensor:
    """Self-attention within each sentence.

    Args:
        qkv_N3HE: queries, keys and values of all tokens.
        tokens: the packed batch.
        first_only: attend from each sentence's first token only.
        dropout: probability of dropping an attention weight.
        bias_HTT: added to the scores, by query and key, for sentences up to the longest; None adds nothing. The
            variable-length kernel takes no bias, so with one a GPU, too, computes run by run.

    Returns:
        (N, H, E), or (B, H, E) with `first_only`.

    Source: Vaswani et al., 2017 (https://arxiv.org/abs/1706.03762); the packed form is FlashAttention's varlen
    interface (Dao, 2023, https://arxiv.org/abs/2307.08691).
    """
    if bias_HTT is None and has_varlen_kernel(qkv_N3HE):
        if tiles_fit(qkv_N3HE, tokens.longest):
            out = attend_tiles(qkv_N3HE, tokens.segments, tokens.tiles, dropout)
            return out.index_select(0, tokens.first_rows) if first_only else out
        q, k, v = qkv_N3HE.unbind(1)
        queries = tokens
        if first_only:
            q, queries = q.index_select(0, tokens.first_rows), tokens.of_first_tokens
        return VarlenAttention.apply(
            q, k, v, queries.cu_seqlens, tokens.cu_seqlens, queries.longest, tokens.longest, dropout
        )

    context = []
    for q, k, v, bias in runs(qkv_N3HE, tokens, first_only, bias_HTT):
        if dropout == 0 and products_are_faster(k):
            context.append(attention_by_products(q, k, v, bias))
        else:
            context.append(F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout))
    return joined(context)


class VarlenAttention(torch.autograd.Function):
    """torch's variable-length flash kernel with dropout of attention weights, which its `varlen_attn` lacks."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        starts_q: torch.Tensor,
        starts_k: torch.Tensor,
        longest_q: int,
        longest_k: int,
        dropout: float,
    ) -> torch.Tensor:
        """q (M, H, E), k and v (N, H, E), where their sentences start, and how long they are at most: (M, H, E)."""
        out, lse, rng, offset, _ = torch.ops.aten._flash_attention_forward(
            q, k, v, starts_q, starts_k, longest_q, longest_k, dropout, False, return_debug_mask=False
        )
        ctx.save_for_backward(q, k, v, out, lse, starts_q, starts_k, rng, offset)
        ctx.settings = longest_q, longest_k, dropout
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        q, k, v, out, lse, starts_q, starts_k, rng, offset = ctx.saved_tensors
        found = torch.ops.aten._flash_attention_backward(
            gradient.contiguous(), q, k, v, out, lse, starts_q, starts_k, *ctx.settings, False, rng, offset
        )
        return (*found, None, None, None, None, None)


def runs(
    qkv_N3HE: torch.Tensor, tokens: PackedTokens, first_only: bool, bias_HTT: torch.Tensor | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]]:
    """Queries, keys, values (count, H, T, E) and the bias (H, T, T) of each run of equally long sentences.

    With `first_only`, queries and bias have only the first of their T rows.
    """
    _, _, H, E = qkv_N3HE.shape
    # split, not slices: the backward of a split joins the parts, that of each slice would fill a whole zero matrix
    blocks = qkv_N3HE.split([count * length for _, count, length in tokens.groups])
    for (_, count, length), block in zip(tokens.groups, blocks, strict=True):
        q, k, v = block.view(count, length, 3, H, E).permute(2, 0, 3, 1, 4)
        bias = None if bias_HTT is None else bias_HTT[:, :length, :length].to(q.dtype)
        if first_only:
            q, bias = q[:, :, :1], bias if bias is None else bias[:, :1]
        yield q, k, v, bias


def joined(context: list[torch.Tensor]) -> torch.Tensor:
    """Join the runs' results, (count, H, T, E) of each, to one tensor (N, H, E)."""
    parts = [out.transpose(1, 2).flatten(0, 1) for out in context]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def has_varlen_kernel(qkv_N3HE: torch.Tensor) -> bool:
    """Whether torch's variable-length flash kernel takes this tensor.

    It needs half precision, a head size of at most 256 that is a multiple of 8, an Ampere GPU or newer, and a torch
    that was built with it.
    """
    head_size = qkv_N3HE.shape[-1]
    fits = qkv_N3HE.dtype in (torch.float16, torch.bfloat16) and head_size % 8 == 0 and head_size <= 256
    return fits and qkv_N3HE.is_cuda and gpu_has_flash(qkv_N3HE.device)


@cache
def gpu_has_flash(device: torch.device) -> bool:
    """Whether a GPU and this build of torch have flash attention; asked once, not in every layer."""
    return torch.backends.cuda.is_flash_attention_available() and torch.cuda.get_device_capability(device) >= (8, 0)
