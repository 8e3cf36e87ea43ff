"""What a student keeps of its teacher: STS correlations, retrieval, nearest neighbours, negative MSE.

    python evaluate.py runs/minilm-3/model --sts sts-test=sts-test.csv
    python evaluate.py runs/minilm-3/model --teacher assets/all-MiniLM-L6-v2 --retrieval captions=parallel:a.txt,b.txt

Prints a table and writes evaluation.json and evaluation_pairs.json beside the model. Teacher, STS sets and held-out
sentences are taken from the run that made the model where no flag names them.
"""

import argparse
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats

from shortstack.distillation.command_line import OneLineParser, named_sources, run_command
from shortstack.distillation.data.labels import LabelledSentences
from shortstack.distillation.data.passages import cutter_of
from shortstack.distillation.data.sentences import read_sentences
from shortstack.distillation.data.sources import split_marks
from shortstack.distillation.evaluation.sets import RetrievalSet, StsPairs, read_retrieval, read_sts
from shortstack.distillation.ranks import Ranks
from shortstack.distillation.recipe import overrides_for, read_recipe
from shortstack.distillation.run import run_directory
from shortstack.model import Embedder
from shortstack.model.files import InputError, read_json, write_json
from shortstack.model.tokens import Tokenized

RESAMPLES = 1000  # of the bootstrap: the interval's ends are then good to about a tenth of its width
SIMILARITIES = 2**25  # of queries and documents in memory at a time: 134 MB
AGREEMENT_ROWS = 1000  # sentences whose every pair is compared: half a million pairs, a fraction of a second
MEASURES = ("mrr@10", "ndcg@10", "recall@1", "recall@10")
NEIGHBOURS = 10  # nearest sentences that teacher and student are asked for
WORST = 5  # sentences shown whose neighbours the student finds least of
ALONE = Ranks(0, 1, torch.device("cpu"))


# -- embedding -------------------------------------------------------------------------------------------------------


def embed(embedder: Embedder, tokens: Tokenized | Sequence[np.ndarray], ranks: Ranks = ALONE) -> torch.Tensor:
    """Embed tokenised sentences, shared among the ranks: (n, d) fp32 on the embedder's device, on every rank."""
    result = torch.zeros(len(tokens), embedder.dimensions, device=embedder.device)
    mine = np.arange(ranks.rank, len(tokens), ranks.world)
    result[mine] = embedder.embed(Tokenized.of(tokens).take(mine), check=True)
    return ranks.sum(result)


def embed_texts(embedder: Embedder, texts: Sequence[str], role: str = "", ranks: Ranks = ALONE) -> torch.Tensor:
    """Embed texts under the model's prompt for their role: (n, d) fp32 on the embedder's device, on every rank."""
    return embed(embedder, embedder.tokenize(texts, embedder.role_prompt(role)), ranks)


# -- STS -------------------------------------------------------------------------------------------------------------


def sts_similarities(embedder: Embedder, pairs: StsPairs, ranks: Ranks = ALONE) -> np.ndarray:
    """Cosine similarity of each pair: (n,)."""
    both = pairs.sentences1 + pairs.sentences2
    indices = {text: index for index, text in enumerate(dict.fromkeys(both))}  # a text may be in many pairs
    embeddings = embed_texts(embedder, list(indices), ranks=ranks)
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


def bootstrap(
    statistic: Callable[..., np.ndarray], columns: Sequence[np.ndarray], seed: int = 0, resamples: int = RESAMPLES
) -> np.ndarray:
    """Statistics of columns (n,) over resampled rows, the same resamples for each column.

    Args:
        statistic: `spearmans` or `means`.
        columns: what it takes; row i of each belongs to the same pair or query.
        seed: of the resampling.
        resamples: how many.

    Returns:
        (outputs of the statistic, resamples).

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13 (percentile intervals).
    """
    if len(columns[0]) < 2:  # one row can be drawn in one way only, which scipy refuses to do
        return np.repeat(statistic(*(column[None] for column in columns)), resamples, axis=1)
    settings = {"paired": True, "vectorized": True, "method": "percentile", "n_resamples": resamples, "batch": 100}
    with warnings.catch_warnings():  # of resamples whose statistic is NaN: `interval` leaves them out
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        return stats.bootstrap(tuple(columns), statistic, rng=seed, **settings).bootstrap_distribution


def spearmans(*columns: np.ndarray, axis: int = -1) -> np.ndarray:
    """Spearman correlation of each column with the last one, over the last axis; NaN where one is constant."""
    ranks = stats.rankdata(np.stack(columns), axis=-1)
    ranks -= ranks.mean(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):  # a resample of few pairs may be constant
        ranks /= np.linalg.norm(ranks, axis=-1, keepdims=True)
    return (ranks[:-1] * ranks[-1]).sum(axis=-1)


def means(*columns: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean of each column, over the last axis."""
    return np.stack(columns).mean(axis=-1)


def interval(values: np.ndarray) -> list[float]:
    """The middle 95% of bootstrap values: [low, high]."""
    return [float(value) for value in np.nanpercentile(values, [2.5, 97.5])]


def paired(student: np.ndarray, teacher: np.ndarray) -> dict[str, Any]:
    """The interval of a difference, from bootstrap values over the same resamples, and whether it leaves out 0."""
    low, high = interval(student - teacher)
    return {"interval": [low, high], "clear": low * high > 0}


# -- distance to the teacher -----------------------------------------------------------------------------------------


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
    """`found_neighbours` in the mean, with intervals, and the sentences where the student finds least."""
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


def evaluate_quickly(
    student: Embedder,
    held_out: LabelledSentences,
    sts: Sequence[StsPairs],
    ranks: Ranks = ALONE,
    retrieval: Sequence[RetrievalSet] = (),
) -> dict[str, Any]:
    """The figures that a training run watches: distance to the labels, neighbours found, and each set's figures."""
    embeddings = embed(student, held_out.tokens, ranks)
    labels = held_out.labels.to(embeddings)
    figures: dict[str, Any] = distance_to_teacher(embeddings, labels)
    figures["overlap@10"] = float("nan")
    if len(labels) > 2:
        figures["overlap@10"] = float(found_neighbours(embeddings, labels)["student"].mean())
    for data in retrieval:
        queries = embed_texts(student, data.queries, "query", ranks)
        documents = embed_texts(student, data.documents, "document", ranks)
        figures[data.name] = retrieval_figures(queries, documents, data.relevant)
    for pairs in sts:
        figures[pairs.name] = correlations(sts_similarities(student, pairs, ranks), pairs.scores)
    return figures


# -- retrieval -------------------------------------------------------------------------------------------------------


def retrieval_figures(
    queries_Qd: torch.Tensor, documents_Nd: torch.Tensor, relevant: Sequence[set[int]]
) -> dict[str, float]:
    """How well cosine similarity finds each query's documents: the means of `judge_queries`."""
    return {key: float(values.mean()) for key, values in judge_queries(queries_Qd, documents_Nd, relevant).items()}


def judge_queries(
    queries_Qd: torch.Tensor, documents_Nd: torch.Tensor, relevant: Sequence[set[int]]
) -> dict[str, np.ndarray]:
    """How well cosine similarity finds each query's documents.

    Args:
        queries_Qd, documents_Nd: embeddings.
        relevant: for each query, the rows of `documents_Nd` it should find.

    Returns:
        Of each query, (Q,):
        mrr@10: 1 / rank of the first relevant document among the first 10, 0 where there is none.
        ndcg@10: gain discounted by log2(rank + 1) over the best possible one.
        recall@1, recall@10: share of the relevant documents among the first 1 or 10.

    Source: as in BEIR (Thakur et al., 2021, https://arxiv.org/abs/2104.08663).
    """
    top = min(10, len(documents_Nd))
    documents_Nd = F.normalize(documents_Nd, dim=-1)
    figures: dict[str, list[float]] = {key: [] for key in MEASURES}
    block = max(1, SIMILARITIES // len(documents_Nd))
    for start in range(0, len(queries_Qd), block):
        found = (F.normalize(queries_Qd[start : start + block], dim=-1) @ documents_Nd.T).topk(top).indices.tolist()
        for wanted, ranking in zip(relevant[start : start + block], found, strict=True):
            hits = np.array([document in wanted for document in ranking])
            discounts = 1 / np.log2(np.arange(2, 12))
            figures["mrr@10"].append(1 / (1 + int(hits.argmax())) if hits.any() else 0.0)
            figures["ndcg@10"].append(float((hits * discounts[:top]).sum() / discounts[: min(len(wanted), 10)].sum()))
            figures["recall@1"].append(float(hits[0]) / len(wanted))
            figures["recall@10"].append(float(hits.sum()) / len(wanted))
    return {key: np.array(values) for key, values in figures.items()}


def evaluate_retrieval(student: Embedder, teacher: Embedder | None, data: RetrievalSet) -> dict[str, dict[str, Any]]:
    """Retrieval by the student, by the teacher, and asymmetric: the student's queries over the teacher's documents.

    Returns:
        For each: the means of `judge_queries`, ndcg@10's interval, and beside a teacher for the student and asymmetric
        `kept`, the share of the teacher's ndcg@10, and `difference` to it, over the same resampled queries.
    """

    def both(embedder: Embedder) -> tuple[torch.Tensor, torch.Tensor]:
        return embed_texts(embedder, data.queries, "query"), embed_texts(embedder, data.documents, "document")

    student_queries, student_documents = both(student)
    judged = {"student": judge_queries(student_queries, student_documents, data.relevant)}
    if teacher is not None:
        queries, documents = both(teacher)
        judged["teacher"] = judge_queries(queries, documents, data.relevant)
        if student.dimensions == teacher.dimensions:
            judged["asymmetric"] = judge_queries(student_queries, documents.to(student.device), data.relevant)
    resampled = dict(zip(judged, bootstrap(means, [each["ndcg@10"] for each in judged.values()]), strict=True))
    figures: dict[str, dict[str, Any]] = {}
    for who, each in judged.items():
        figures[who] = {key: float(values.mean()) for key, values in each.items()} | {
            "interval": interval(resampled[who])
        }
        if teacher is not None and who != "teacher":
            kept, whole = (float(judged[name]["ndcg@10"].mean()) for name in (who, "teacher"))
            figures[who]["kept"] = kept / whole if whole else float("nan")
            figures[who]["difference"] = {"ndcg@10": kept - whole, **paired(resampled[who], resampled["teacher"])}
    return figures


# -- everything about a model ----------------------------------------------------------------------------------------


def evaluate(
    student: Embedder,
    teacher: Embedder | None,
    sts: Sequence[StsPairs],
    held_out: Sequence[str] = (),
    retrieval: Sequence[RetrievalSet] = (),
    roles: Sequence[str] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """All figures of a student and, where given, its teacher.

    `roles` are those of the held-out sentences; None stands for no role, which takes the default prompt.

    Returns:
        The content of evaluation.json, and of evaluation_pairs.json (each STS pair with its similarities).
    """
    models = {"student": student} | ({"teacher": teacher} if teacher is not None else {})
    figures: dict[str, Any] = {name: {} for name in models}
    figures |= {"retention": {}, "difference": {}, "models": {name: describe(each) for name, each in models.items()}}
    pairs_file = {}
    for pairs in sts:
        similarities = {name: sts_similarities(each, pairs) for name, each in models.items()}
        resampled = bootstrap(spearmans, [*similarities.values(), pairs.scores])
        for name, values, again in zip(models, similarities.values(), resampled, strict=True):
            figures[name][pairs.name] = correlations(values, pairs.scores)
            figures[name][pairs.name] |= {"spearman_interval": interval(again), "pairs": len(pairs.scores)}
        if teacher is not None:
            kept, whole = (figures[name][pairs.name]["spearman_cosine"] for name in ("student", "teacher"))
            figures["retention"][pairs.name] = kept / whole if whole else float("nan")
            figures["difference"][pairs.name] = {"spearman": kept - whole, **paired(*resampled)}
        columns = {name: values.round(6).tolist() for name, values in similarities.items()}
        pairs_file[pairs.name] = {
            "sentences1": pairs.sentences1,
            "sentences2": pairs.sentences2,
            "human": pairs.scores.tolist(),
            **columns,
        }
    if sts:
        figures["mean"] = {
            name: {
                kind: float(np.mean([figures[name][pairs.name][kind] for pairs in sts]))
                for kind in ("pearson_cosine", "spearman_cosine")
            }
            for name in models
        }
    if teacher is not None and held_out and student.dimensions == teacher.dimensions:
        roles = [""] * len(held_out) if roles is None else roles
        texts = [each.with_prompts(held_out, roles) for each in (student, teacher)]
        ours, theirs = (
            torch.as_tensor(each.encode(text, prompt="")) for each, text in zip((student, teacher), texts, strict=True)
        )
        distance = distance_to_teacher(ours, theirs)
        figures["student"]["negative_mse"] = distance.pop("negative_mse")
        figures["sanity"] = distance
        if len(held_out) > 2:
            figures["overlap"] = overlap_figures(ours, theirs, held_out)
    if retrieval:
        figures["retrieval"] = {data.name: evaluate_retrieval(student, teacher, data) for data in retrieval}
    return figures, pairs_file


def describe(embedder: Embedder) -> dict[str, Any]:
    """Size and shape of a model."""
    config = embedder.bert.config
    return {
        "name": embedder.settings.origin,
        "layers": config.num_hidden_layers,
        "dimensions": embedder.dimensions,
        "parameters": sum(p.numel() for name, p in embedder.named_parameters() if "pooler" not in name),
        "precision": embedder.precision,
    }


def table(figures: dict[str, Any]) -> str:
    """The figures as text: a line per STS set, then retrieval and the distance to the teacher."""
    sets = {name: each for name, each in figures["student"].items() if isinstance(each, dict)}
    width = max(map(len, [*sets, *figures.get("retrieval", {}), "STS set".ljust(16)]))
    lines = []
    if sets:
        columns = f" {'teacher':>8} {'kept':>7}   difference" if "teacher" in figures else ""
        lines.append(f"{'STS set':<{width}} {'pairs':>6} {'student Spearman':>29}{columns}")
    for name, student in sets.items():
        low, high = student["spearman_interval"]
        line = f"{name:<{width}} {student['pairs']:>6} {student['spearman_cosine']:>10.4f}"
        line += f" {f'[{low:.4f}, {high:.4f}]':>18}"
        if "teacher" in figures:
            difference = figures["difference"][name]
            line += f" {figures['teacher'][name]['spearman_cosine']:>8.4f} {figures['retention'][name]:>7.1%}"
            line += f"   {difference['spearman']:+.4f}, {'clear' if difference['clear'] else 'within the noise'}"
        lines.append(line)
    if len(sets) > 1:
        mean = {name: f"{values['spearman_cosine']:.4f}" for name, values in figures["mean"].items()}
        lines.append(f"{'mean':<{width}} {'':>6} {mean['student']:>10} {'':>18} {mean.get('teacher', ''):>8}".rstrip())
    for name, systems in figures.get("retrieval", {}).items():
        lines += ["", f"{name:<{width}} " + " ".join(f"{key:>10}" for key in MEASURES)]
        for who, row in systems.items():
            line = f"  {who:<{width - 2}} " + " ".join(f"{row[key]:>10.4f}" for key in MEASURES)
            if "kept" in row:
                clear = "clear" if row["difference"]["clear"] else "within the noise"
                line += f"   {row['kept']:.1%} of the teacher's nDCG@10 kept, {clear}"
            lines.append(line)
    if "negative_mse" in figures["student"]:
        sanity = figures["sanity"]
        mse, mean_cosine = figures["student"]["negative_mse"], sanity["mean_cosine"]
        lines += ["", f"negative MSE {mse:.4f} (relative error {sanity['relative_error']:.4f})"]
        lines.append(f"cosine to the teacher: mean {mean_cosine:.4f}, 5th percentile {sanity['p5_cosine']:.4f}")
        lines.append(f"agreement with the teacher on which sentences are alike: {sanity['agreement']:.4f}")
    if "overlap" in figures:
        alone, over = figures["overlap"]["student"], figures["overlap"]["asymmetric"]
        low, high = alone["interval"]
        lines.append(
            f"overlap@10: of the teacher's ten nearest neighbours the student finds {alone['overlap@10']:.1%} "
            f"[{low:.1%}, {high:.1%}], over the teacher's embeddings {over['overlap@10']:.1%}"
        )
    return "\n".join(lines)


def held_out_text(sources: list[str] | None, run: Path | None, student: Embedder) -> tuple[list[str], list[str]]:
    """Sentences to compare student and teacher on, and their roles: those of `sources`, else what the run held out."""
    if sources:
        cutter = cutter_of(student)
        texts = [(text, split_marks(source)[0].role) for source in sources for text in read_sentences(source, cutter)]
        return [text for text, _ in texts], [role for _, role in texts]
    if run is None or not (run / "held_out.json").exists():
        return [], []
    kept = read_json(run / "held_out.json")
    if isinstance(kept, list):  # written before there were roles
        return kept, [""] * len(kept)
    return kept["sentences"], kept["roles"]


def main() -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="directory or Hub name")
    parser.add_argument("--teacher", help="directory or Hub name (default: the teacher of the run, 'none' for none)")
    parser.add_argument("--sts", nargs="+", action="extend", metavar="NAME=SOURCE", help="sets (default: the run's)")
    retrieval_help = "a directory with queries, documents and relevance, or parallel:FILE,FILE,... (default: the run's)"
    parser.add_argument("--retrieval", nargs="+", action="extend", metavar="NAME=SOURCE", help=retrieval_help)
    parser.add_argument("--sentences", nargs="+", help="text for the negative MSE (default: the run's held-out text)")
    parser.add_argument("--precision", default="auto", help="auto, fp32, bf16, fp16 or int8 (default: auto)")
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--output", type=Path, help="where to write evaluation.json (default: the run's directory)")
    arguments = parser.parse_args()

    run = run_directory(arguments.model)
    recipe = read_recipe(run / "recipe.toml") if run is not None else None
    teacher_name = arguments.teacher or (recipe.teacher if recipe else "none")
    sources = named_sources(arguments.sts, "--sts") if arguments.sts else (recipe.sts if recipe else {})
    given = arguments.sts or arguments.retrieval or arguments.sentences
    collections = recipe.retrieval if recipe and not given else {}
    if arguments.retrieval:
        collections = named_sources(arguments.retrieval, "--retrieval")
    if not (sources or collections or arguments.sentences):
        raise InputError("nothing to judge by: give --sts NAME=SOURCE, --retrieval NAME=SOURCE or --sentences SOURCE")
    if arguments.sentences and teacher_name == "none":
        raise InputError("--sentences: the negative MSE to a teacher needs one; give --teacher")
    sts = [read_sts(name, source) for name, source in sources.items()]
    retrieval = [read_retrieval(name, source) for name, source in collections.items()]
    student = Embedder.load(arguments.model, arguments.device, arguments.precision)
    teacher = None
    if teacher_name != "none":
        overrides = overrides_for(teacher_name, recipe)
        teacher = Embedder.load(teacher_name, arguments.device, arguments.precision, **overrides)
    held_out, roles = held_out_text(arguments.sentences, run, student)
    figures, pairs = evaluate(student, teacher, sts, held_out, retrieval, roles)
    output = arguments.output or run or Path(".")
    write_json(output / "evaluation.json", figures)
    write_json(output / "evaluation_pairs.json", pairs)
    print(table(figures))
    print(f"wrote {output / 'evaluation.json'}")


if __name__ == "__main__":
    run_command(main)
