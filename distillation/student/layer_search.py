"""Which layers to keep, by trial: how close each choice comes to the teacher before any training."""

import itertools
import math
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from shortstack.model import Embedder
from shortstack.model.tokens import Tokenized

SAMPLE = 256  # sentences that choices are compared on
EXHAUSTIVE = 500  # with more choices than this, layers are removed one by one instead


def search_layers(teacher: Embedder, sentences: Sequence[str], count: int, exhaustive: int = EXHAUSTIVE) -> list[int]:
    """Choose the layers whose untrained student gives most nearly the teacher's similarities.

    Up to 500 choices are all tried: C(6, 3) = 20 for MiniLM. Beyond that layers are taken away one at a time, each time
    the one that is missed least: 264 trials from 24 layers down to 8.

    Args:
        teacher: in evaluation mode; left as it was.
        sentences: text like what the student will see, with its prompts before it; the first 256 are used.
        count: layers to keep.
        exhaustive: up to so many choices are all tried.

    Returns:
        Teacher layers to keep, ascending.

    Source: trying layers before training follows Sajjad et al., 2023 (https://arxiv.org/abs/2004.03844), who rank them
    by their contribution; the measure is linear CKA of the embeddings (Kornblith et al., 2019,
    https://arxiv.org/abs/1905.00414).
    """
    total = teacher.bert.config.num_hidden_layers
    tokens = teacher.tokenize(sentences[:SAMPLE])
    whole = _embed_with(teacher, range(total), tokens)

    def score(layers: Iterable[int]) -> float:
        return linear_cka(_embed_with(teacher, list(layers), tokens), whole)

    if math.comb(total, count) <= exhaustive:
        return list(max(itertools.combinations(range(total), count), key=score))
    kept = list(range(total))
    while len(kept) > count:
        kept = max((kept[:index] + kept[index + 1 :] for index in range(len(kept))), key=score)
    return kept


def linear_cka(a_nd: torch.Tensor, b_nd: torch.Tensor) -> float:
    """Linear CKA: how alike the similarities within two sets of embeddings (n, d) of the same sentences are, 0 to 1."""
    a_nd, b_nd = (unit - unit.mean(dim=0) for unit in (nn.functional.normalize(x, dim=1) for x in (a_nd, b_nd)))
    norms = (a_nd.T @ a_nd).norm() * (b_nd.T @ b_nd).norm()
    return float((a_nd.T @ b_nd).square().sum() / norms)


def _embed_with(teacher: Embedder, layers: Sequence[int], tokens: Tokenized) -> torch.Tensor:
    """Embed with some of the teacher's layers, without copying them: (n, d)."""
    prepared = teacher.prepared
    whole = prepared or teacher.bert.network()
    try:
        teacher.prepared = whole._replace(layers=[whole.layers[layer] for layer in layers])
        return teacher.embed(tokens)
    finally:
        teacher.prepared = prepared
