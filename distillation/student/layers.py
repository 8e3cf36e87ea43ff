"""Which layers a student keeps: as a list, by a strategy, or by trial before any training.

`all` leaves none out, `even:8` of 24 gives 0 3 7 10 13 16 20 23 (first and last included), and `auto:8` searches for
the eight that come closest to the teacher on text. `none` leaves word vectors, their norm and pooling.
"""

import itertools
import math
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from shortstack.model import Embedder
from shortstack.model.files import InputError
from shortstack.model.tokens import Tokenized

STRATEGIES = ("auto", "even")  # with a count, such as even:3
SAMPLE = 256  # sentences on which choices are compared
EXHAUSTIVE = 500  # with more choices than this, layers are removed one by one instead

# -- by name ---------------------------------------------------------------------------------------------------------


def choose_layers(layers: str | list[int], total: int, whose: str = "the teacher") -> list[int] | None:
    """Layers to keep, ascending, counted from 0; None for `auto`, which `search_layers` decides.

    `layers` is a list of numbers, `all`, `none`, or `STRATEGY:COUNT` such as `even:8`. Keeping every other layer is
    DistilBERT's initialisation (Sanh et al., 2019, https://arxiv.org/abs/1910.01108).

    Raises:
        InputError: a layer that `whose` model does not have, one named twice or out of order, or an unknown strategy.
    """
    if layers == "all":
        return list(range(total))
    if layers == "none":
        return []
    if isinstance(layers, str):
        if not total:
            raise InputError(f"layers: {whose} has none, so {layers!r} can't be kept; give --layers none")
        count = count_of(layers, total)
        if layers.startswith("auto"):
            return None
        if count == 1:
            return [total - 1]  # the layer whose output the teacher pools
        return [round(i * (total - 1) / (count - 1)) for i in range(count)]
    if not all(type(layer) is int for layer in layers):
        raise InputError(f"layers: {layers} must be whole numbers, such as 0,2,5")
    for layer in layers:
        if not 0 <= layer < total:
            has = f"layers 0 to {total - 1}" if total else "none"
            raise InputError(f"layers: {layer} is outside {whose}, which has {has}")
    if sorted(set(layers)) != layers:
        raise InputError(f"layers: {layers} must ascend, each layer once")
    return layers.copy()


def count_of(layers: str, total: int) -> int:
    """How many of `total` layers a strategy keeps; InputError for an unknown one or a count that makes no sense."""
    name, _, number = layers.partition(":")
    if name not in STRATEGIES:
        known = ", ".join(f"{strategy}:COUNT" for strategy in STRATEGIES)
        raise InputError(f"layers: {layers!r} is neither a list of numbers nor one of all, none, {known}")
    if not number.isdecimal() or not 1 <= int(number) <= total:
        raise InputError(f"layers: {layers!r} needs a count from 1 to {total}, such as {name}:{max(1, total // 3)}")
    return int(number)


# -- by trial --------------------------------------------------------------------------------------------------------


def search_layers(teacher: Embedder, sentences: Sequence[str], count: int, exhaustive: int = EXHAUSTIVE) -> list[int]:
    """Choose the layers whose untrained student comes closest to the teacher's similarities; they ascend.

    If there are at most `exhaustive` choices, all are tried: C(6, 3) = 20 for MiniLM. Otherwise layers are removed one
    at a time, always the one whose loss costs least: 264 trials from 24 layers down to 8.

    Args:
        teacher: in evaluation mode; not changed.
        sentences: text like what the student will see, prompts included; the first 256 are used.

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
    """Linear CKA of two sets of embeddings (n, d) of the same sentences: 1 if their similarities agree, 0 if not."""
    a_nd, b_nd = (unit - unit.mean(dim=0) for unit in (nn.functional.normalize(x, dim=1) for x in (a_nd, b_nd)))
    norms = (a_nd.T @ a_nd).norm() * (b_nd.T @ b_nd).norm()
    return float((a_nd.T @ b_nd).square().sum() / norms)


def _embed_with(teacher: Embedder, layers: Sequence[int], tokens: Tokenized) -> torch.Tensor:
    """Embed with some of the teacher's layers, without copying them: (n, d)."""
    with teacher.with_layers(layers):
        return teacher.embed(tokens)


def note_on_layers(layers: list[int] | str) -> str:
    """A note for a user who gives one number and may mean so many layers; empty where there is no doubt."""
    if not isinstance(layers, list) or len(layers) != 1 or layers[0] <= 1:
        return ""
    (number,) = layers
    return f"--layers {number} keeps one layer, number {number}; for {number} layers: --layers even:{number}"
