"""STS: do a model's similarities order pairs of sentences as people do?"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from shortstack.distillation.evaluation.bootstrap import bootstrap, interval, paired, spearmans
from shortstack.distillation.evaluation.embeddings import embed_texts
from shortstack.distillation.evaluation.sets import StsPairs
from shortstack.distillation.ranks import ALONE, Ranks
from shortstack.model import Embedder


def sts_similarities(embedder: Embedder, pairs: StsPairs, ranks: Ranks = ALONE) -> np.ndarray:
    """Cosine similarity of each pair: (n,)."""
    both = pairs.sentences1 + pairs.sentences2
    indices = {text: index for index, text in enumerate(dict.fromkeys(both))}  # a text may be in many pairs
    embeddings = embed_texts(embedder, list(indices), "", ranks)
    first, second = embeddings[[indices[text] for text in both]].split(len(pairs.sentences1))
    return embedder.similarity_pairwise(first, second).cpu().numpy()


def correlations(similarities: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Pearson and Spearman correlation of predicted similarities (n,) with human scores (n,).

    Source: Cer et al., "SemEval-2017 Task 1", 2017 (https://arxiv.org/abs/1708.00055); Spearman is what the field
    reports since Reimers et al., 2016 (https://aclanthology.org/C16-1009).
    """
    return {
        "pearson_cosine": float(stats.pearsonr(similarities, scores).statistic),
        "spearman_cosine": float(stats.spearmanr(similarities, scores).statistic),
    }


def evaluate_sts(models: Mapping[str, Embedder], pairs: StsPairs) -> tuple[dict[str, Any], dict[str, Any]]:
    """One set's figures for "student" and perhaps "teacher", as `compare_similarities` gives them."""
    return compare_similarities({name: sts_similarities(model, pairs) for name, model in models.items()}, pairs)


def compare_similarities(
    similarities: Mapping[str, np.ndarray], pairs: StsPairs
) -> tuple[dict[str, Any], dict[str, Any]]:
    """One set's figures from the similarities of its pairs.

    Args:
        similarities: those by "student" and perhaps by "teacher", (n,) each.
        pairs: the set.

    Returns:
        Correlations, with an interval, by model. With a teacher also "retention", the share of its Spearman correlation
        that is kept, and "difference" to it, over the same resampled pairs. Then the set's part of
        evaluation_pairs.json.
    """
    resampled = bootstrap(spearmans, [*similarities.values(), pairs.scores])
    figures: dict[str, Any] = {}
    for (name, values), again in zip(similarities.items(), resampled, strict=True):
        figures[name] = correlations(values, pairs.scores)
        figures[name] |= {"spearman_interval": interval(again), "pairs": len(pairs.scores)}
    if "teacher" in similarities:
        kept, whole = (figures[name]["spearman_cosine"] for name in ("student", "teacher"))
        figures["retention"] = kept / whole if whole else float("nan")
        figures["difference"] = {"spearman": kept - whole, **paired(*resampled)}
    columns = {name: values.round(6).tolist() for name, values in similarities.items()}
    texts = {"sentences1": pairs.sentences1, "sentences2": pairs.sentences2, "human": pairs.scores.tolist()}
    return figures, texts | columns


def mean_over_pairs(figures: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The mean of each correlation over the STS sets, by model; empty without sets."""
    result = {}
    for name in figures["models"]:
        sets = [value for value in figures[name].values() if isinstance(value, dict)]
        if sets:
            kinds = ("pearson_cosine", "spearman_cosine")
            result[name] = {kind: mean_of([value.get(kind) for value in sets]) for kind in kinds}
    return result


def mean_of(values: Sequence[Any]) -> float:
    """The mean; NaN if a value is NaN or None (null in a file)."""
    return float(np.mean([value if isinstance(value, (int, float)) else math.nan for value in values]))
