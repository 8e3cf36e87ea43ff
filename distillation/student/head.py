"""A linear head that brings a student's embeddings into the space of a teacher known only by its vectors."""

import torch
from torch import nn

from shortstack.distillation.data.labels import LabelledSentences
from shortstack.model import Embedder
from shortstack.model.files import InputError

RIDGE = 1e-3  # strength of the regression's penalty, as a share of the inputs' mean variance


def check_body(body: Embedder, dimensions: int, name: str) -> None:
    """Raise InputError if an encoder has a dense layer to another number of dimensions than the vectors'."""
    own = body.dense.out_features if body.dense is not None else dimensions
    if own != dimensions:
        raise InputError(
            f"start_from: {name} has a dense layer to {own} dimensions, the vectors have {dimensions}; "
            "start from the encoder that it was made from"
        )


def fit_head(student: Embedder, sample: LabelledSentences, normalised: bool) -> None:
    """Give the student a dense layer from its pooled token vectors to the labels, by ridge regression.

    Args:
        student: in evaluation mode; changed in place. A dense layer that it already has is kept.
        sample: sentences with the teacher's vectors; several times as many as the student has dimensions.
        normalised: whether the teacher's vectors have length 1; the student's then get length 1 too.

    Raises:
        InputError: a single sentence, which no line can be fitted to.

    Source: Hoerl and Kennard, "Ridge regression", 1970 (https://doi.org/10.1080/00401706.1970.10488634).
    """
    student.settings.truncate_dim = None  # that of the encoder's own embeddings, not of the teacher's
    if student.dense is None:
        student.settings.normalize = False  # before the regression, which must see what the layer will see
        inputs_nD = student.use_precision("fp32").embed(sample.tokens).double()
        labels_nd = sample.labels.to(inputs_nD)
        if len(labels_nd) < 2:
            raise InputError("teacher_vectors: there is only one text to train on; give more")
        input_mean, label_mean = inputs_nD.mean(dim=0), labels_nd.mean(dim=0)
        centred = inputs_nD - input_mean
        gram = centred.T @ centred
        gram.diagonal().add_(RIDGE * gram.diagonal().mean())
        weight = torch.linalg.solve(gram, centred.T @ (labels_nd - label_mean)).T
        dense = nn.Linear(weight.shape[1], weight.shape[0]).to(student.device)
        with torch.no_grad():
            dense.weight.copy_(weight)
            dense.bias.copy_(label_mean - weight @ input_mean)
        student.dense, student.dense_activation = dense, "Identity"
    student.settings.normalize = normalised
