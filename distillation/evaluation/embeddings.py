"""Embeddings for the evaluation: the work shared among ranks, and the teacher's embeddings of sets kept on disk."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from shortstack.distillation.data.labels import fingerprint_of, teacher_parts
from shortstack.distillation.evaluation.sets import RetrievalSet
from shortstack.distillation.ranks import ALONE, Ranks
from shortstack.model import Embedder
from shortstack.model.tensors import read_kept, save_tensors
from shortstack.model.tokens import Tokenized


class SetEmbeddings(NamedTuple):
    """A model's embeddings of a retrieval set: (Q, d) and (N, d), fp32."""

    queries: torch.Tensor
    documents: torch.Tensor


def embed_shared(embedder: Embedder, tokens: Tokenized, ranks: Ranks = ALONE) -> torch.Tensor:
    """Embed tokenised sentences, sharing the work among ranks: (n, d) fp32 on the embedder's device, on every rank."""
    result = torch.zeros(len(tokens), embedder.dimensions, device=embedder.device)
    mine = np.arange(ranks.rank, len(tokens), ranks.world)
    result[mine] = embedder.embed(tokens.take(mine), check=True)
    return ranks.sum(result)


def embed_texts(embedder: Embedder, texts: Sequence[str], role: str, ranks: Ranks = ALONE) -> torch.Tensor:
    """`embed_shared` of texts under the model's prompt for their role; the role "" takes the default prompt."""
    return embed_shared(embedder, embedder.tokenize(texts, embedder.role_prompt(role)), ranks)


def embed_set(embedder: Embedder, data: RetrievalSet, ranks: Ranks = ALONE) -> SetEmbeddings:
    """Embed a retrieval set's queries and documents, each under the model's prompt for its role."""
    return SetEmbeddings(
        embed_texts(embedder, data.queries, "query", ranks), embed_texts(embedder, data.documents, "document", ranks)
    )


def teacher_embeddings(
    teacher: Embedder, data: RetrievalSet, directory: Path | None, ranks: Ranks = ALONE
) -> SetEmbeddings:
    """The teacher's embeddings of a retrieval set: read from disk, or computed now and kept.

    `directory` has one file a set, named after the teacher, its prompts, its precision and the set's texts; None keeps
    nothing. A damaged file is made again, and a line says so, as of a directory that can't be written to. All ranks
    must call this together, and share the work.
    """
    if directory is None:
        return embed_set(teacher, data, ranks)
    parts = teacher_parts(teacher) | {"precision": teacher.precision, "texts": [data.queries, data.documents]}
    fingerprint = fingerprint_of(parts)
    path = directory / f"retrieval-{fingerprint[:16]}.safetensors"
    kept = read_kept(path, fingerprint, "embedding the set again")
    if not ranks.any(kept is None):  # otherwise all ranks compute: they may not see the same files
        assert kept is not None
        return SetEmbeddings(kept["queries"].to(teacher.device), kept["documents"].to(teacher.device))
    embeddings = embed_set(teacher, data, ranks)
    if ranks.is_main and all(bool(matrix.isfinite().all()) for matrix in embeddings):
        try:
            save_tensors(path, embeddings._asdict(), state=fingerprint)
        except OSError as error:
            print_once(f"{directory}: can't keep the teacher's embeddings ({error.strerror}); going on without")
    return embeddings


@cache
def print_once(line: str) -> None:
    """Print a line, unless it was printed before: it is true of each set."""
    print(line, flush=True)
