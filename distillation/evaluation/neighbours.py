"""How close a student's embeddings are to its teacher's: distance, and nearest neighbours."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from shortstack.distillation.evaluation.bootstrap import bootstrap, interval, means
from shortstack.distillation.evaluation.retrieval import CHARACTERS, WORST, nearest, share_found
from shortstack.distillation.evaluation.sts import correlations
from shortstack.model import Embedder

AGREEMENT_ROWS = 1000  # sentences compared in all pairs: half a million of them, in a fraction of a second
NEIGHBOURS = 10  # nearest sentences to compare between teacher and student


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
    similarities = [
        Embedder.similarity(vectors, vectors).cpu().numpy()[first, second] for vectors in (student, teacher)
    ]
    return correlations(*similarities)["spearman_cosine"]


def found_neighbours(student_nd: torch.Tensor, teacher_nd: torch.Tensor) -> dict[str, np.ndarray]:
    """The share of every sentence's nearest neighbours, by the teacher, that the student finds too.

    Args:
        student_nd, teacher_nd: (n, d) embeddings of the same sentences, at least 3.

    Returns:
        "student" and "asymmetric", (n,) each: shares of the teacher's ten neighbours (n - 1 if there are fewer than
        eleven sentences). "student" searches with the student alone, "asymmetric" with the student's embedding of one
        sentence among the teacher's embeddings of the others.
    """
    count = min(NEIGHBOURS, len(teacher_nd) - 1)
    wanted = nearest(teacher_nd, teacher_nd, count, without_itself=True)
    searched = {"student": student_nd, "asymmetric": teacher_nd.to(student_nd)}
    return {
        who: share_found(nearest(student_nd, documents_nd, count, without_itself=True), wanted).astype(np.float32)
        for who, documents_nd in searched.items()
    }


def overlap_figures(student_nd: torch.Tensor, teacher_nd: torch.Tensor, sentences: Sequence[str]) -> dict[str, Any]:
    """`found_neighbours` on average, with intervals, and the sentences of which the student finds fewest."""
    shares = found_neighbours(student_nd, teacher_nd)
    resampled = bootstrap(means, list(shares.values()))
    figures: dict[str, Any] = {
        who: {"overlap@10": float(values.mean()), "interval": interval(again)}
        for (who, values), again in zip(shares.items(), resampled, strict=True)
    }
    embeddings = {"teacher": teacher_nd, "student": student_nd}
    closest = {who: nearest(vectors, vectors, 1, without_itself=True)[:, 0] for who, vectors in embeddings.items()}
    figures["worst"] = [
        {"sentence": sentences[index][:CHARACTERS], "found": float(shares["student"][index])}
        | {f"nearest by the {who}": sentences[indices[index]][:CHARACTERS] for who, indices in closest.items()}
        for index in np.argsort(shares["student"], kind="stable")[:WORST].tolist()
    ]
    return figures | {"sentences": len(sentences)}
