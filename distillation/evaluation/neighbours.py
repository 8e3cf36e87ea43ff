"""How close a student's embeddings are to its teacher's: distance, and nearest neighbours."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from shortstack.distillation.evaluation.bootstrap import bootstrap, interval, means
from shortstack.distillation.evaluation.sts import correlations
from shortstack.model import Embedder

AGREEMENT_ROWS = 1000  # sentences whose every pair is compared: half a million pairs, a fraction of a second
NEIGHBOURS = 10  # nearest sentences that teacher and student are asked for
SIMILARITIES = 2**25  # of queries and documents in memory at a time: 134 MB
WORST = 5  # sentences shown whose neighbours the student finds least of


def distance_to_teacher(student: torch.Tensor, teacher: torch.Tensor) -> dict[str, float]:
    """How close embeddings (n, d) are to the teacher's (n, d).

    Returns:
        negative_mse: -100 times the mean squared error over sentences and dimensions, as the field reports it.
        relative_error: MSE divided by the variance of the teacher's embeddings; 1 is no better than their mean.
        mean_cosine, p5_cosine: mean and 5th percentile of the cosine similarity between the two.
        agreement: Spearman correlation of the similarities that the two see between sentences, over all pairs of the
            first thousand: what ranking by the student keeps of ranking by the teacher. NaN below 3 sentences.
    """
    mse = (student - teacher).square().mean()
    variance = (teacher - teacher.mean(dim=0)).square().mean()
    cosines = F.cosine_similarity(student, teacher, dim=1)
    return {
        "negative_mse": -100 * float(mse),
        "relative_error": float(mse / variance),
        "mean_cosine": float(cosines.mean()),
        "p5_cosine": float(cosines.quantile(0.05)),
        "agreement": agreement(student[:AGREEMENT_ROWS], teacher[:AGREEMENT_ROWS]),
    }


def agreement(student: torch.Tensor, teacher: torch.Tensor) -> float:
    """Spearman correlation of the cosine similarities within embeddings (n, d) with those within the teacher's."""
    if len(student) < 3:
        return float("nan")
    first, second = np.triu_indices(len(student), k=1)
    similarities = [Embedder.similarity(each, each).cpu().numpy()[first, second] for each in (student, teacher)]
    return correlations(*similarities)["spearman_cosine"]


def found_neighbours(student_nd: torch.Tensor, teacher_nd: torch.Tensor) -> dict[str, np.ndarray]:
    """How many of each sentence's nearest neighbours, as the teacher sees them among n sentences, the student finds.

    Args:
        student_nd, teacher_nd: embeddings of the same sentences. Below 3 there is nothing to find.

    Returns:
        The share of the teacher's ten (n - 1 of fewer than eleven sentences), (n,) each: by the student alone, and
        asymmetric, by the student's embedding among the teacher's of the other sentences.
    """
    count = min(NEIGHBOURS, len(teacher_nd) - 1)
    wanted = nearest(teacher_nd, teacher_nd, count)
    found = {
        "student": nearest(student_nd, student_nd, count),
        "asymmetric": nearest(student_nd, teacher_nd.to(student_nd), count),
    }
    return {
        who: (each[:, :, None] == wanted[:, None, :]).any(dim=2).float().mean(dim=1).numpy()
        for who, each in found.items()
    }


def nearest(queries_nd: torch.Tensor, documents_nd: torch.Tensor, count: int) -> torch.Tensor:
    """Indices of the nearest documents of each query, itself (the same row) left out: (n, count), on the CPU."""
    queries_nd, documents_nd = F.normalize(queries_nd, dim=-1), F.normalize(documents_nd, dim=-1)
    block = max(1, SIMILARITIES // len(documents_nd))
    found = []
    for start in range(0, len(queries_nd), block):
        similarities = queries_nd[start : start + block] @ documents_nd.T
        rows = torch.arange(len(similarities), device=similarities.device)
        similarities[rows, rows + start] = -2.0  # below any cosine
        found.append(similarities.topk(count).indices.cpu())
    return torch.cat(found)


def overlap_figures(student_nd: torch.Tensor, teacher_nd: torch.Tensor, sentences: Sequence[str]) -> dict[str, Any]:
    """`found_neighbours` on average, with intervals, and the sentences where the student finds least."""
    found = found_neighbours(student_nd, teacher_nd)
    resampled = bootstrap(means, list(found.values()))
    figures: dict[str, Any] = {
        who: {"overlap@10": float(shares.mean()), "interval": interval(again)}
        for (who, shares), again in zip(found.items(), resampled, strict=True)
    }
    worst = np.argsort(found["student"], kind="stable")[:WORST]
    seen = {who: nearest(each, each, 1)[:, 0] for who, each in (("teacher", teacher_nd), ("student", student_nd))}
    figures["worst"] = [
        {"sentence": sentences[row], "found": float(found["student"][row])}
        | {f"nearest by the {who}": sentences[int(rows[row])] for who, rows in seen.items()}
        for row in worst.tolist()
    ]
    return figures | {"sentences": len(sentences)}
