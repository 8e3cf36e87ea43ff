"""Self-attention of packed sentences, in the form that is fastest for the device, the type and the length.

Shapes: B sentences, T tokens a sentence, N tokens of the whole batch, H heads, E dimensions a head.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn

from shortstack.model.tokens import PackedTokens

# On a CPU, by the tables of docs/speed.md: the tokens of a sentence from which on torch's flash kernel is as fast as
# two batched products, without a gradient and with one; and those of a single one from which on it is slower in bf16.
LONGEST_FOR_PRODUCTS, LONGEST_WITH_GRADIENT, LONGEST_ALONE = 192, 256, 32
VECTOR = 16  # numbers that a CPU computes at once


def attention(
    qkv_N3HE: torch.Tensor,
    tokens: PackedTokens,
    queries: PackedTokens,
    dropout: float,
    bias_HTT: torch.Tensor | None = None,
    alike: bool = False,
) -> torch.Tensor:
    """Self-attention within each sentence.

    Args:
        qkv_N3HE: queries, keys and values of all tokens.
        tokens: the packed batch.
        queries: `tokens` itself, or its `of_first_tokens` where only those rows are wanted.
        dropout: probability of dropping an attention weight.
        bias_HTT: added to the scores, by query and key, for sentences up to the longest; None adds nothing. The
            variable-length kernel takes none, so with a bias a GPU computes run by run of equally long sentences, too.
        alike: whether a CPU must round a sentence's numbers alike alone and among others.

    Returns:
        (rows of `queries`, H, E).

    Source: Vaswani et al., 2017 (https://arxiv.org/abs/1706.03762); the packed form is FlashAttention's varlen
    interface (Dao, 2023, https://arxiv.org/abs/2307.08691).
    """
    first_only = queries is not tokens
    if dropout == 0 and bias_HTT is None and has_varlen_kernel(qkv_N3HE):
        q, k, v = qkv_N3HE.unbind(1)
        if first_only:
            q = q.index_select(0, tokens.first_rows)
        out = varlen_attn(q, k, v, queries.cu_seqlens, tokens.cu_seqlens, queries.longest, tokens.longest)
        assert isinstance(out, torch.Tensor)  # a pair only where auxiliary output is asked for
        return out

    _, _, H, E = qkv_N3HE.shape
    context = []
    # split, not slices: the backward of a split joins the parts, that of each slice would fill a whole zero matrix
    blocks = qkv_N3HE.split([count * length for _, count, length in tokens.groups])
    for (_, count, length), block in zip(tokens.groups, blocks, strict=True):
        block = block.view(count, length, 3, H, E)
        q, k, v = block.permute(2, 0, 3, 1, 4)  # each (count, H, length, E)
        bias = None if bias_HTT is None else bias_HTT[:, :length, :length].to(q.dtype)
        if first_only:
            q, bias = q[:, :, :1], bias if bias is None else bias[:, :1]
        if dropout == 0 and products_are_faster(block, alike):
            out = attention_by_products(q, k, v, bias)
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
        context.append(out.transpose(1, 2).reshape(-1, H, E))
    return context[0] if len(context) == 1 else torch.cat(context)


def attention_by_products(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """What scaled_dot_product_attention computes, as two batched products with a softmax between them.

    Args:
        q, k, v: (B, H, T, E) each; q may have fewer tokens. Where a gradient is wanted, all is computed in fp32: bf16
            has six products then, and for each the kernel of a new shape is compiled, which takes longer than they do.
        bias: (H, tokens of q, T), added to the scores.

    Returns:
        (B, H, tokens of q, E).
    """
    if q.requires_grad and q.dtype == torch.bfloat16:
        with torch.autocast(q.device.type, enabled=False):
            exact = None if bias is None else bias.float()
            return attention_by_products(q.float(), k.float(), v.float(), exact).to(q.dtype)
    B, H, _, E = q.shape
    q, k, v = (each.reshape(B * H, -1, E) for each in (q, k, v))  # contiguous: the products read them fastest
    scores = torch.baddbmm(q.new_empty(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=E**-0.5)
    if bias is not None:
        scores = (scores.view(B, H, *bias.shape[1:]) + bias).view_as(scores)
    return torch.bmm(softmax(scores).to(v.dtype), v).view(B, H, -1, E)


def softmax(scores: torch.Tensor) -> torch.Tensor:
    """Softmax over the last dimension, summed in fp32.

    torch's kernel takes ten times as long for rows of 15 numbers as of 16, which fill its vectors, and in bf16 three
    times as long for 31 as for 32: so rows are filled up with scores of no weight. Up to one vector bf16 is slower.
    """
    length = scores.shape[-1]
    if length < VECTOR or scores.dtype == torch.bfloat16:
        scores = F.pad(scores, (0, -length % VECTOR), value=float("-inf"))
    return scores.softmax(dim=-1, dtype=torch.float32 if length <= VECTOR else None)[..., :length]


def products_are_faster(block: torch.Tensor, alike: bool = False) -> bool:
    """Whether `attention_by_products` beats torch's flash kernel for this run of sentences, (count, length, ...).

    On a CPU only: for all but long sentences, and for longer ones where a gradient is wanted, since the kernel's
    backward pass is slow. For a single short one in bf16, starting the operations costs more than computing.
    """
    count, length = block.shape[:2]
    if block.device.type != "cpu":
        return False
    if count == 1 and length < LONGEST_ALONE and block.dtype == torch.bfloat16 and not alike:
        return False
    return length < (LONGEST_WITH_GRADIENT if block.requires_grad else LONGEST_FOR_PRODUCTS)


def has_varlen_kernel(qkv_N3HE: torch.Tensor) -> bool:
    """Whether torch's variable-length flash kernel takes this tensor.

    It wants half precision, a head size of at most 256 that is a multiple of 8, an Ampere GPU or newer, and a torch
    that was built with it.
    """
    head_size = qkv_N3HE.shape[-1]
    fits = qkv_N3HE.dtype in (torch.float16, torch.bfloat16) and head_size % 8 == 0 and head_size <= 256
    return fits and qkv_N3HE.is_cuda and gpu_has_flash(qkv_N3HE.device)


@cache
def gpu_has_flash(device: torch.device) -> bool:
    """Whether a GPU and this build of torch have flash attention; asked once, not in every layer."""
    return torch.backends.cuda.is_flash_attention_available() and torch.cuda.get_device_capability(device) >= (8, 0)
