"""Pooling: one vector a sentence out of one vector a token.

Shapes: N tokens of B sentences end to end, D hidden dimensions.
"""

import enum

import torch


class Pooling(enum.StrEnum):
    """How a sentence's token vectors become its embedding."""

    CLS = "cls"  # the first token's vector
    MEAN = "mean"  # the mean over all of the sentence's tokens


def pool(hidden_ND: torch.Tensor, groups: list[tuple[int, int, int]], pooling: Pooling) -> torch.Tensor:
    """Pool packed token vectors.

    Args:
        hidden_ND: token vectors (N, D), sentences end to end.
        groups: (first token, number of sentences, tokens a sentence) of each run of equally long sentences.
        pooling: cls or mean.

    Returns:
        (B, D) in fp32: a mean taken in half precision would lose what the encoder kept.

    Source: Reimers and Gurevych, "Sentence-BERT", 2019 (https://arxiv.org/abs/1908.10084), section 3.
    """
    pooled = []
    blocks = hidden_ND.split([count * length for _, count, length in groups])
    for (_, count, length), block_ND in zip(groups, blocks, strict=True):
        block_BTD = block_ND.view(count, length, -1)
        pooled.append(block_BTD[:, 0].float() if pooling is Pooling.CLS else block_BTD.mean(dim=1, dtype=torch.float32))
    return torch.cat(pooled)
