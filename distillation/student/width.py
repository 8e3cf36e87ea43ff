"""Narrower students: keep the most important units between the two products of every layer's MLP."""

from typing import Any

import numpy as np
import torch
from torch import nn

from shortstack.distillation.data.labels import LabelledSentences
from shortstack.distillation.losses import LOSSES
from shortstack.model import Embedder
from shortstack.model.files import InputError
from shortstack.model.tokens import PackedTokens, send

SAMPLE, BATCH = 2048, 64  # sentences on which importance is measured, in all and at a time


def check_width(teacher: Embedder, units: int) -> None:
    """Raise InputError unless the teacher's layers have more units than this."""
    has = getattr(teacher.bert.config, teacher.bert.inner_size)
    if units >= has:
        raise InputError(f"intermediate_size: {units} must be below the teacher's {has}")


def important_units(student: Embedder, sample: LabelledSentences, units: int, loss: str) -> list[list[int]]:
    """The units of every layer whose removal would change the loss most: ascending numbers.

    Imagine a gate behind every unit, a factor of 1. A unit's importance is the square of d loss / d gate, summed over
    batches. This needs no real gate: the derivative is the sum, over the unit's weights in the second product, of
    weight times gradient. The first 2,048 sentences of the sample are used.

    Source: Molchanov et al., 2019 (https://arxiv.org/abs/1906.10771), first order.
    """
    student.train()
    outputs = [output for _, output in products(student)]
    importance = [torch.zeros(output.in_features, device=student.device) for output in outputs]
    order = np.argsort(sample.lengths[:SAMPLE], kind="stable")
    for batch in np.array_split(order, -(-len(order) // BATCH)):
        tokens = PackedTokens.pack(sample.tokens.take(batch), student.device)
        labels_Bd = send(sample.labels[torch.from_numpy(batch)], student.device).float()
        LOSSES[loss](student(tokens).float(), labels_Bd).mean().backward()
        for total, output in zip(importance, outputs, strict=True):
            total += (output.weight.grad * output.weight.detach()).sum(dim=0).square()
        student.zero_grad()
    student.eval()
    return [total.topk(units).indices.sort().values.tolist() for total in importance]


def keep_units(student: Embedder, units: list[list[int]]) -> None:
    """Keep only these units of every layer, by their numbers; changes the student in place."""
    for (inner, output), kept in zip(products(student), units, strict=True):
        inner.weight, inner.bias = (nn.Parameter(tensor.detach()[kept]) for tensor in (inner.weight, inner.bias))
        output.weight = nn.Parameter(output.weight.detach()[:, kept].contiguous())
        inner.out_features = output.in_features = len(kept)
    setattr(student.bert.config, student.bert.inner_size, len(units[0]))


def products(student: Embedder) -> list[tuple[Any, Any]]:
    """The two products of the MLP in every layer."""
    return [(layer.intermediate, layer.output) for layer in student.bert.layers()]
