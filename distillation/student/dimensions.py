"""Smaller embeddings: a final dense layer that keeps the directions in which the teacher's embeddings vary most."""

from collections.abc import Sequence

import torch
from torch import nn

from shortstack.model import Embedder
from shortstack.model.files import InputError


def check_dimensions(teacher: Embedder, dimensions: int) -> None:
    """Raise InputError unless the teacher's embeddings can be projected to so few dimensions."""
    if teacher.dense is not None:
        raise InputError("dimensions: the teacher has a dense layer of its own; leave dimensions at 0")
    if teacher.settings.truncate_dim:
        raise InputError("dimensions: the teacher's embeddings are cut by its truncate_dim; leave dimensions at 0")
    if not 0 < dimensions < teacher.dimensions:
        raise InputError(f"dimensions: {dimensions} must be below the teacher's {teacher.dimensions}")


def project_teacher(teacher: Embedder, sentences: Sequence[str], dimensions: int) -> nn.Linear:
    """Give the teacher a dense layer, so that its labels, and a student copied from it, have fewer dimensions.

    The layer's rows are the leading right singular vectors of the embeddings: of all projections, this one preserves
    their dot products best. The mean is not subtracted, since that would change the cosine similarities.

    Args:
        teacher: an Embedder without a dense layer; changed in place.
        sentences: text like what the student will see, prompts included; about ten thousand are enough.
        dimensions: length of the new embeddings.

    Raises:
        InputError: fewer sentences than dimensions, or `check_dimensions` refuses.

    Source: Eckart and Young, "The approximation of one matrix by another of lower rank", 1936
    (https://doi.org/10.1007/BF02288367).
    """
    check_dimensions(teacher, dimensions)
    embeddings = torch.as_tensor(teacher.encode(sentences, prompt="", convert_to_tensor=True)).double()
    if len(embeddings) < dimensions:
        raise InputError(f"dimensions: {dimensions} directions need at least as many sentences, got {len(embeddings)}")
    _, vectors = torch.linalg.eigh(embeddings.T @ embeddings)  # ascending
    dense = nn.Linear(teacher.dimensions, dimensions, bias=False)
    with torch.no_grad():
        dense.weight.copy_(vectors.flip(1)[:, :dimensions].T)
    teacher.dense = dense.to(teacher.device)
    return teacher.dense
