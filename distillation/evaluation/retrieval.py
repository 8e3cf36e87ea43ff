"""Retrieval: does the student find what people judged relevant, and does it find what the teacher finds?"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from shortstack.distillation.evaluation.bootstrap import bootstrap, interval, means, paired
from shortstack.distillation.evaluation.embeddings import SetEmbeddings
from shortstack.distillation.evaluation.sets import RetrievalSet
from shortstack.distillation.evaluation.sts import mean_of

MEASURES = ("mrr@10", "ndcg@10", "recall@1", "recall@10")
WORST = 5  # shown: queries or sentences for which the student finds fewest, and documents for every query
CHARACTERS = 500  # of a text that is shown
SIMILARITIES = 2**25  # of queries and documents in memory at a time: 134 MB


def nearest(
    queries_Qd: torch.Tensor, documents_Nd: torch.Tensor, count: int = 10, without_itself: bool = False
) -> np.ndarray:
    """The documents with the highest cosine similarity to each query, best first: (Q, count), or (Q, N) if fewer.

    `without_itself` leaves document i out of the ranking of query i, where both are the same sentences.
    """
    documents_Nd = F.normalize(documents_Nd, dim=-1)
    block = max(1, SIMILARITIES // len(documents_Nd))
    rankings = []
    for start in range(0, len(queries_Qd), block):
        similarities = F.normalize(queries_Qd[start : start + block], dim=-1) @ documents_Nd.T
        if without_itself:
            similarities.diagonal(start).fill_(-2.0)  # below any cosine
        rankings.append(similarities.topk(min(count, len(documents_Nd))).indices.cpu().numpy())
    return np.concatenate(rankings)


def judge_rankings(rankings_Qk: np.ndarray, grades: Sequence[Mapping[int, float]]) -> dict[str, np.ndarray]:
    """How well rankings agree with people's judgements.

    Args:
        rankings_Qk: indices of documents, best first, as `nearest` gives them.
        grades: for each query, the grades, above 0, of the documents it should find; one or more.

    Returns:
        For every query, (Q,):
        mrr@10: 1 / rank of the first relevant document among the first 10, 0 if there is none.
        ndcg@10: the sum of the grades found, each divided by log2(rank + 1), over the largest possible sum.
        recall@1, recall@10: share of the relevant documents among the first 1 or 10.

    Source: as in BEIR (Thakur et al., 2021, https://arxiv.org/abs/2104.08663), which uses trec_eval: the gain is the
    grade itself, not 2 to its power.
    """
    figures: dict[str, list[float]] = {key: [] for key in MEASURES}
    discounts = 1 / np.log2(np.arange(2, 12))
    for wanted, ranking in zip(grades, rankings_Qk.tolist(), strict=True):
        gains = np.array([wanted.get(document, 0.0) for document in ranking])
        best = np.sort(np.array(list(wanted.values()), dtype=float))[::-1][:10]
        hits = gains > 0
        figures["mrr@10"].append(1 / (1 + int(hits.argmax())) if hits.any() else 0.0)
        figures["ndcg@10"].append(
            float((gains * discounts[: len(gains)]).sum() / (best * discounts[: len(best)]).sum())
        )
        figures["recall@1"].append(float(hits[0]) / len(wanted))
        figures["recall@10"].append(float(hits.sum()) / len(wanted))
    return {key: np.array(values) for key, values in figures.items()}


def share_found(rankings_Qk: np.ndarray, wanted_Qk: np.ndarray) -> np.ndarray:
    """found@10 of each query, (Q,): the share of the teacher's first ten documents that are among the student's."""
    return (rankings_Qk[:, :, None] == wanted_Qk[:, None, :]).any(axis=1).mean(axis=1)


def quick_figures(
    student: SetEmbeddings, grades: Sequence[Mapping[int, float]], wanted_Qk: np.ndarray | None = None
) -> dict[str, float]:
    """The means of `judge_rankings` and, if the teacher's first ten are given, of found@10."""
    rankings = nearest(*student)
    figures = judge_rankings(rankings, grades)
    if wanted_Qk is not None:
        figures["found@10"] = share_found(rankings, wanted_Qk)
    return {key: float(values.mean()) for key, values in figures.items()}


def evaluate_retrieval(
    data: RetrievalSet, student: SetEmbeddings, teacher: SetEmbeddings | None = None
) -> dict[str, dict[str, Any]]:
    """Retrieval by the student, by the teacher, and asymmetric: the student's queries over the teacher's documents.

    Args:
        data: the set.
        student, teacher: their embeddings of the set. If their dimensions differ, asymmetric is left out.

    Returns:
        For each of the three the means of `judge_rankings` and the interval of ndcg@10. With a teacher also, for the
        student and asymmetric: `kept`, the share of the teacher's ndcg@10, with its interval; `difference` to it, over
        the same resampled queries; found@10 and its interval.
    """
    rankings = {"student": nearest(*student)}
    if teacher is not None:
        rankings["teacher"] = nearest(*teacher)
        if student.queries.shape[1] == teacher.documents.shape[1]:
            rankings["asymmetric"] = nearest(student.queries, teacher.documents.to(student.queries))
    judged = {who: judge_rankings(ranking, data.grades) for who, ranking in rankings.items()}
    resampled = dict(zip(judged, bootstrap(means, [values["ndcg@10"] for values in judged.values()]), strict=True))
    figures: dict[str, dict[str, Any]] = {}
    for who, measures in judged.items():
        figures[who] = {key: float(values.mean()) for key, values in measures.items()}
        figures[who]["interval"] = interval(resampled[who])
        if teacher is not None and who != "teacher":
            kept, whole = (float(judged[name]["ndcg@10"].mean()) for name in (who, "teacher"))
            figures[who]["kept"] = kept / whole if whole else float("nan")
            figures[who]["kept_interval"] = interval(ratio(resampled[who], resampled["teacher"]))
            figures[who]["difference"] = {"ndcg@10": kept - whole, **paired(resampled[who], resampled["teacher"])}
            shares = share_found(rankings[who], rankings["teacher"])
            figures[who]["found@10"] = float(shares.mean())
            figures[who]["found@10_interval"] = interval(bootstrap(means, [shares])[0])
    return figures


def missed_documents(data: RetrievalSet, student: SetEmbeddings, teacher: SetEmbeddings) -> list[dict[str, Any]]:
    """The queries for which the student finds fewest of the teacher's first ten documents.

    Returns:
        For each query: `query`, `found` (the share), `teacher` (documents among its first ten that the student missed)
        and `student` (those that the student found instead), best first. Texts are cut to 500 characters.
    """
    ours, theirs = nearest(*student), nearest(*teacher)
    shares = share_found(ours, theirs)
    shown = []
    for index in np.argsort(shares, kind="stable")[:WORST].tolist():
        mine, wanted = ours[index].tolist(), theirs[index].tolist()
        texts = {
            "teacher": [data.documents[document] for document in wanted if document not in mine][:WORST],
            "student": [data.documents[document] for document in mine if document not in wanted][:WORST],
        }
        cut = {who: [text[:CHARACTERS] for text in documents] for who, documents in texts.items()}
        shown.append({"query": data.queries[index][:CHARACTERS], "found": float(shares[index]), **cut})
    return shown


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Part over whole, NaN where the whole is 0."""
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


def mean_over_sets(retrieval: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, float]]:
    """Means of found@10 and kept, for the student and asymmetric, over the sets that have them."""
    result: dict[str, dict[str, float]] = {}
    for who in ("student", "asymmetric"):
        sets = [systems[who] for systems in retrieval.values() if "found@10" in systems.get(who, {})]
        if sets:
            result[who] = {key: mean_of([figures.get(key) for figures in sets]) for key in ("found@10", "kept")}
    return result
