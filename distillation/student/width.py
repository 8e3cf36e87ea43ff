"""Narrower students: keep the most important units between the two products of every layer's MLP."""

from typing import Any

import numpy as np
import torch
from torch import nn

from shortstack.model import Embedder
from shortstack.model.files import InputError
from shortstack.model.tokens import PackedTokens, Tokenized, send

SAMPLE, BATCH = 2048, 64  # sentences on which importance is measured, in all and at a time


def check_width(teacher: Embedder, units: int) -> None:
    """Raise InputError unless the teacher's layers have more units than this."""
    has = getattr(teacher.bert.config, teacher.bert.inner_size)
    if units >= has:
        raise InputError(f"intermediate_size: {units} must be below the teacher's {has}")


def important_units(student: Embedder, tokens: Tokenized, units: int) -> list[list[int]]:
    """The units of every layer whose removal would change the student's embeddings most: ascending numbers.

    Imagine a gate behind every unit, a factor of 1. A unit's importance is the squared derivative of the embeddings by
    the gate, summed over dimensions and sentences: the diagonal of the Gauss-Newton matrix. The loss itself would not
    do: a student that still has all layers has no loss yet, and so no gradient. Each sentence is asked for one random
    direction, which gives the same on average (Hutchinson, 1989). This needs no real gate: the derivative is the sum,
    over the unit's weights in the second product, of weight times gradient. The first 2,048 sentences are used.

    Source: Molchanov et al., 2019 (https://arxiv.org/abs/1906.10771), with another gradient.
    """
    student.train()
    outputs = [output for _, output in products(student)]
    importance = [torch.zeros(output.in_features, device=student.device) for output in outputs]
    order = np.argsort(tokens.lengths[:SAMPLE], kind="stable")
    generator = torch.Generator().manual_seed(0)
    for batch in np.array_split(order, -(-len(order) // BATCH)):
        embeddings_Bd = student(PackedTokens.pack(tokens.take(batch), student.device)).float()
        directions_Bd = torch.randn(embeddings_Bd.shape, generator=generator)
        (embeddings_Bd * send(directions_Bd, student.device)).sum().backward()
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
