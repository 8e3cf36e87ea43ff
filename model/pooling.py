"""Pooling: one vector a sentence out of one vector a token.

Shapes: N tokens of B sentences end to end, D hidden dimensions.
"""

import enum

import torch

from shortstack.model.tokens import PackedTokens


class Pooling(enum.StrEnum):
    """How a sentence's token vectors become its embedding."""

    CLS = "cls"  # the first token's vector
    MEAN = "mean"  # the mean over all of the sentence's tokens


def pool(hidden: torch.Tensor, tokens: PackedTokens, pooling: Pooling) -> torch.Tensor:
    """Pool packed token vectors.

    Args:
        hidden: token vectors (N, D), sentences end to end; for cls (B, D) will do, those of the first tokens.
        tokens: the packed batch.
        pooling: cls or mean.

    Returns:
        (B, D) in fp32: a mean taken in half precision would lose what the encoder kept.

    Source: Reimers and Gurevych, "Sentence-BERT", 2019 (https://arxiv.org/abs/1908.10084), section 3.
    """
    if pooling is Pooling.CLS:
        return (hidden if len(hidden) == len(tokens.lengths) else hidden.index_select(0, tokens.first_rows)).float()
    return mean_by_sentences(hidden, tokens) if hidden.is_cuda else mean_by_runs(hidden, tokens)


def mean_by_runs(hidden_ND: torch.Tensor, tokens: PackedTokens) -> torch.Tensor:
    """The mean over each sentence, run by run of equally long ones: fastest on a CPU."""
    blocks = hidden_ND.split([count * length for _, count, length in tokens.groups])
    return torch.cat(
        [
            block_ND.view(count, length, -1).mean(dim=1, dtype=torch.float32)
            for (_, count, length), block_ND in zip(tokens.groups, blocks, strict=True)
        ]
    )


def mean_by_sentences(hidden_ND: torch.Tensor, tokens: PackedTokens) -> torch.Tensor:
    """The same in one operation for all sentences, whatever their lengths: fastest on CUDA, and missing on MPS."""
    starts = tokens.cu_seqlens
    sums_BD = torch.segment_reduce(hidden_ND.float(), "sum", offsets=starts, axis=0, unsafe=True)
    return sums_BD / starts.diff()[:, None]
