"""The judge of a student: quickly while it trains, fully when it is finished."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shortstack.distillation.data.labels import LabelledSentences
from shortstack.distillation.data.sentences import Texts
from shortstack.distillation.evaluation.embeddings import embed_set, embed_shared, teacher_embeddings
from shortstack.distillation.evaluation.neighbours import distance_to_teacher, found_neighbours, overlap_figures
from shortstack.distillation.evaluation.retrieval import (
    evaluate_retrieval,
    mean_over_sets,
    missed_documents,
    nearest,
    quick_figures,
)
from shortstack.distillation.evaluation.sets import RetrievalSet, StsPairs
from shortstack.distillation.evaluation.sts import correlations, evaluate_sts, mean_over_pairs, sts_similarities
from shortstack.distillation.ranks import ALONE, Ranks
from shortstack.model import Embedder
from shortstack.model.tensors import sha256_of_tensors


@dataclass
class Judge:
    """What students are judged by.

    Attributes:
        sts: pairs of sentences, with people's scores.
        retrieval: queries and documents, with people's grades.
        held_out: texts that no student was trained on.
        ranks: these share the work of `quickly`.
        kept: directory of the teacher's embeddings of the retrieval sets, such as OUTPUT/labels; None keeps none.
        own: the set of a user's own documents, which `fully` judges search by first.
    """

    sts: Sequence[StsPairs] = ()
    retrieval: Sequence[RetrievalSet] = ()
    held_out: Texts = Texts([], [])
    ranks: Ranks = ALONE
    kept: Path | None = None
    own: RetrievalSet | None = None
    _before: dict[str, float] = field(default_factory=dict, init=False)
    _wanted: dict[str, np.ndarray] = field(default_factory=dict, init=False)

    def hear(self, teacher: Embedder) -> "Judge":
        """Keep the teacher's rankings of the retrieval sets, so that `quickly` gives found@10. Returns self.

        All ranks must come here together.
        """
        for data in self.retrieval:
            self._wanted[data.name] = nearest(*teacher_embeddings(teacher, data, self.kept, self.ranks))
        return self

    def quickly(self, student: Embedder, held_out: LabelledSentences) -> dict[str, Any]:
        """The figures that a training run watches; all ranks must come here together.

        Distance to the labels of `held_out` and neighbours found, then the figures of every set under its name. After
        `hear` also found@10 of every retrieval set, and mean_found@10.
        """
        embeddings = embed_shared(student, held_out.tokens, self.ranks)
        labels = held_out.labels.to(embeddings)
        figures: dict[str, Any] = distance_to_teacher(embeddings, labels)
        figures["overlap@10"] = float("nan")
        if len(labels) > 2:
            figures["overlap@10"] = float(found_neighbours(embeddings, labels)["student"].mean())
        for data in self.retrieval:
            embedded = embed_set(student, data, self.ranks)
            figures[data.name] = quick_figures(embedded, data.grades, self._wanted.get(data.name))
        if self._wanted:
            figures["mean_found@10"] = float(np.mean([figures[data.name]["found@10"] for data in self.retrieval]))
        for pairs in self.sts:
            figures[pairs.name] = correlations(sts_similarities(student, pairs, self.ranks), pairs.scores)
        return figures

    def hear_start(self, start: Embedder, teacher: Embedder) -> None:
        """Judge the model that the student starts from by the user's own documents: `fully` has it as "before"."""
        if self.own is None:
            return
        precision = start.precision
        figures: dict[str, Any] = {}
        self._search(self.own, start.eval().use_precision(teacher.precision), teacher, figures)
        start.use_precision(precision)
        search = figures["retrieval"][self.own.name]["student"]
        self._before = {key: search[key] for key in ("ndcg@10", "found@10", "kept")}

    def fully(self, student: Embedder, teacher: Embedder | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """All figures of a student and, if given, its teacher, computed on this rank only.

        Returns:
            The content of evaluation.json, and of evaluation_pairs.json (each STS pair with its similarities).
        """
        models = {"student": student} | ({"teacher": teacher} if teacher is not None else {})
        figures: dict[str, Any] = {name: {} for name in models}
        figures |= {
            "retention": {},
            "difference": {},
            "models": {name: describe(model) for name, model in models.items()},
        }
        pairs_file: dict[str, Any] = {}
        for pairs in self.sts:
            sections, pairs_file[pairs.name] = evaluate_sts(models, pairs)
            for section, value in sections.items():
                figures[section][pairs.name] = value
        if teacher is not None and self.held_out[0] and student.dimensions == teacher.dimensions:
            self._compare(student, teacher, figures)
        for data in [*([self.own] if self.own else []), *self.retrieval]:
            self._search(data, student, teacher, figures)
        if self.own and self._before:
            figures["retrieval"][self.own.name]["before"] = self._before
        return with_means(figures), pairs_file

    def by_labels(self, student: Embedder, held_out: LabelledSentences) -> tuple[dict[str, Any], dict[str, Any]]:
        """All figures of a student whose teacher is known only by its vectors, which `held_out` has as labels."""
        figures, pairs_file = self.fully(student)
        embeddings = student.embed(held_out.tokens, check=True)
        self._add_distance(embeddings.cpu(), held_out.labels.float(), figures)
        return figures, pairs_file

    def _compare(self, student: Embedder, teacher: Embedder, figures: dict[str, Any]) -> None:
        """Add the distance to the teacher on the held-out texts, and the shared nearest neighbours."""
        texts, roles = self.held_out
        ours, theirs = (
            torch.as_tensor(model.encode(model.with_prompts(texts, roles), prompt="")) for model in (student, teacher)
        )
        self._add_distance(ours, theirs, figures)

    def _add_distance(self, ours: torch.Tensor, theirs: torch.Tensor, figures: dict[str, Any]) -> None:
        distance = distance_to_teacher(ours, theirs)
        figures["student"]["negative_mse"] = distance.pop("negative_mse")
        figures["sanity"] = distance
        if len(ours) > 2:
            figures["overlap"] = overlap_figures(ours, theirs, self.held_out[0])

    def _search(self, data: RetrievalSet, student: Embedder, teacher: Embedder | None, figures: dict[str, Any]) -> None:
        """Add a retrieval set's figures and, beside a teacher, what the student missed of its documents."""
        ours = embed_set(student, data)
        theirs = None if teacher is None else teacher_embeddings(teacher, data, self.kept)
        figures.setdefault("retrieval", {})[data.name] = evaluate_retrieval(data, ours, theirs)
        if theirs is not None:
            figures.setdefault("missed", {})[data.name] = missed_documents(data, ours, theirs)


def with_means(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures with the means over STS sets and, if there are several, over retrieval sets."""
    means = mean_over_pairs(figures)
    retrieval = figures.get("retrieval", {})
    searched = mean_over_sets(retrieval) if len(retrieval) > 1 else {}
    return figures | ({"mean": means} if means else {}) | ({"retrieval_mean": searched} if searched else {})


def describe(embedder: Embedder) -> dict[str, Any]:
    """Size and shape of a model, and the SHA-256 of its weights."""
    config = embedder.bert.config
    weights = {name: tensor for name, tensor in embedder.state_dict().items() if "pooler" not in name}
    return {
        "name": embedder.settings.origin,
        "layers": config.num_hidden_layers,
        "dimensions": embedder.dimensions,
        "parameters": sum(p.numel() for name, p in embedder.named_parameters() if "pooler" not in name),
        "precision": embedder.precision,
        "weights": sha256_of_tensors(weights),
    }
