"""One step of training: the student's embeddings of a batch move towards the teacher's."""

import torch
from torch import nn

from shortstack.distillation.data.labels import LabelledSentences
from shortstack.distillation.losses import LOSSES
from shortstack.distillation.ranks import Ranks
from shortstack.distillation.recipe import Recipe
from shortstack.distillation.training.optimizer import StudentOptimizer, micro_batches
from shortstack.model.precision import dtype_of
from shortstack.model.tokens import PackedTokens, send


def train_step(
    network: nn.Module,
    optimizer: StudentOptimizer,
    batch: LabelledSentences,
    recipe: Recipe,
    ranks: Ranks,
) -> torch.Tensor:
    """Move the student's embeddings of one batch towards the teacher's.

    Args:
        network: the student in training mode, bare or in DistributedDataParallel.
        optimizer: changes the student's weights.
        batch: the whole batch over all ranks, shortest sentences first.

    Returns:
        This rank's part of the batch's mean loss, () fp32 on the device.
    """
    batch_loss = torch.zeros((), device=ranks.device)
    rows = optimizer.take_rows(batch.tokens)
    for indices in micro_batches(network, len(batch), recipe.gradient_accumulation, ranks):
        micro_batch = batch.take(indices)
        labels_Bd = send(micro_batch.labels, ranks.device)
        loss = sum_of_losses(network, rows.pack(micro_batch.tokens), labels_Bd, recipe)
        loss = loss * (ranks.world / len(batch))  # the ranks' gradients are averaged, not added up
        optimizer.backward(loss)
        batch_loss += loss.detach() / ranks.world
    optimizer.step(rows)
    return batch_loss


def sum_of_losses(network: nn.Module, tokens: PackedTokens, labels_Bd: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """The losses of the first B sentences, those with a label, added up: () fp32."""
    half = dtype_of(recipe.precision)
    with torch.autocast(labels_Bd.device.type, half, enabled=half != torch.float32):
        embeddings_Bd = network(tokens)[: len(labels_Bd)]
    return LOSSES[recipe.loss](embeddings_Bd.float(), labels_Bd.float()).sum()
