"""Attention as two batched products: on a CPU faster than torch's flash kernel, for all but long sentences.

Shapes: B equally long sentences, T tokens each, H heads, E dimensions a head.
"""

import torch
import torch.nn.functional as F

# Tokens of a sentence, measured in docs/speed.md. Two batched products beat torch's flash kernel below the first number
# (without a gradient) and below the second (with one). A single bf16 sentence is faster by the kernel below the third.
LONGEST_FOR_PRODUCTS, LONGEST_WITH_GRADIENT, LONGEST_ALONE = 192, 256, 32
VECTOR = 16  # numbers that a CPU computes with at once


def attention_by_products(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """What scaled_dot_product_attention computes, as two batched products with a softmax between them.

    Args:
        q, k, v: (B, H, T, E) each; q may have fewer tokens. Where a gradient is wanted, all is computed in fp32: in
            bf16 each of the six products compiles a kernel for every new shape, which takes longer than computing.
        bias: (H, tokens of q, T), added to the scores.

    Returns:
        (B, H, tokens of q, E).
    """
    if q.requires_grad and q.dtype == torch.bfloat16:
        with torch.autocast(q.device.type, enabled=False):
            exact = None if bias is None else bias.float()
            return attention_by_products(q.float(), k.float(), v.float(), exact).to(q.dtype)
    B, H, _, E = q.shape
    q, k, v = (tensor.reshape(B * H, -1, E) for tensor in (q, k, v))  # contiguous: the products read them fastest
    scores = torch.baddbmm(q.new_empty(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=E**-0.5)
    if bias is not None:
        scores = (scores.view(B, H, *bias.shape[1:]) + bias).view_as(scores)
    return torch.bmm(softmax(scores).to(v.dtype), v).view(B, H, -1, E)


def softmax(scores: torch.Tensor) -> torch.Tensor:
    """Softmax over the last dimension, summed in fp32.

    torch's kernel works on vectors of 16 numbers. A row of 15 takes ten times as long as one of 16, and in bf16 a row
    of 31 three times as long as one of 32. So rows are padded with scores of -inf, which get no weight. Rows of at most
    one vector are computed in fp32, which is faster there.
    """
    length = scores.shape[-1]
    if length < VECTOR or scores.dtype == torch.bfloat16:
        scores = F.pad(scores, (0, -length % VECTOR), value=float("-inf"))
    return scores.softmax(dim=-1, dtype=torch.float32 if length <= VECTOR else None)[..., :length]


def products_are_faster(k: torch.Tensor, one_rounding: bool = False) -> bool:
    """Whether `attention_by_products` beats torch's flash kernel for sentences with these keys, (B, H, T, E).

    For all but long sentences, and for longer ones where a gradient is wanted, since the kernel's backward pass is
    slow. For a single short sentence in bf16, starting the operations costs more than computing; with `one_rounding`
    it must still be rounded as it would be in a batch with others.
    """
    count, _, length, _ = k.shape
    if k.device.type != "cpu":
        return False
    if count == 1 and length < LONGEST_ALONE and k.dtype == torch.bfloat16 and not one_rounding:
        return False
    return length < (LONGEST_WITH_GRADIENT if k.requires_grad else LONGEST_FOR_PRODUCTS)
