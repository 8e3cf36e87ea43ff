"""AdamW for a student: token rows beside the other weights, scaled losses for fp16, clipping, and skipped steps.

Nothing here waits for the device, which decides by itself whether a step is skipped and counts the skipped ones.
"""

import contextlib
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from shortstack.distillation.data.epochs import micro_shares
from shortstack.distillation.ranks import Ranks
from shortstack.distillation.recipe import Recipe
from shortstack.distillation.training.rows import BatchRows
from shortstack.model import Embedder
from shortstack.model.precision import resolve_precision
from shortstack.model.tokens import Tokenized


class StudentOptimizer:
    """Everything between a loss and changed weights.

    A step with a gradient that is not finite changes nothing and is counted. In fp16 the loss is scaled up so that
    small gradients do not vanish (Micikevicius et al., 2017, https://arxiv.org/abs/1710.03740).

    Attributes:
        table: the token table.
        adamw: the optimizer of all weights except the token table; the table's moments are kept in its state too.
        scaler: scales the loss in fp16, and is disabled otherwise.
        grad_norm: L2 norm of the last step's gradient before clipping, () fp32 on the device.
        skips: steps skipped in all, and in a row up to now: (2,) int64 on the device.
    """

    def __init__(self, student: Embedder, recipe: Recipe, ranks: Ranks) -> None:
        self.table = student.bert.embeddings.word_embeddings.weight
        self.table.requires_grad_(False)  # trained a batch's rows at a time; see distillation/training/rows.py
        self._max_norm = recipe.max_grad_norm or math.inf
        self._ranks = ranks
        self.adamw = torch.optim.AdamW(
            [p for p in student.parameters() if p.requires_grad],
            lr=recipe.learning_rate,
            betas=(0.9, 0.999),
            eps=1e-8,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=recipe.precision == "fp16")
        self.grad_norm = torch.zeros((), device=ranks.device)
        self.skips = torch.zeros(2, dtype=torch.int64, device=ranks.device)

    def refresh(self) -> None:
        """Called after the weights were changed from outside, by `--resume`: here nothing depends on them."""

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return self.adamw.param_groups[0]["lr"]

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        self.adamw.param_groups[0]["lr"] = rate

    def take_rows(self, sentences: Tokenized) -> BatchRows:
        """The rows of the token table that the next step trains: those of the whole batch over all ranks."""
        return BatchRows(self.table, sentences)

    def backward(self, loss: torch.Tensor) -> None:
        """Add a micro-batch's gradient to the weights'."""
        self.scaler.scale(loss).backward()

    def step(self, rows: BatchRows) -> None:
        """Change the weights by the gradients since the last step, then clear the gradients."""
        assert rows.vectors.grad is not None
        self._ranks.sum(rows.vectors.grad).div_(self._ranks.world)  # as DistributedDataParallel does for the others
        group = self.adamw.param_groups[0]
        with_rows = {**group, "params": [*group["params"], rows.vectors]}
        self.adamw.param_groups[0] = with_rows  # so that the scaler also looks for infinities in the token rows
        self.scaler.unscale_(self.adamw)
        self.adamw.param_groups[0] = group

        gradients = [p.grad for p in with_rows["params"] if p.grad is not None]
        self.grad_norm = nn.utils.get_total_norm(gradients)
        excess = (self.grad_norm / self._max_norm).clamp(min=1)
        rows.vectors.grad.div_(excess)
        self.adamw.grad_scale = excess  # type: ignore[attr-defined]  # clips in the step's own pass
        skipped = ~self.grad_norm.isfinite()
        self.adamw.found_inf = skipped.float()  # type: ignore[attr-defined]  # fused AdamW then does nothing
        self.scaler.step(self.adamw)
        self.scaler.update()
        rows.step(self.adamw, skipped)
        self.adamw.zero_grad()
        self.skips[0] += skipped
        self.skips[1] = (self.skips[1] + 1) * skipped


def training_precision(precision: str, device: torch.device) -> str:
    """Turn `auto` into what trains best: bf16 where a GPU has it, since its range needs no scaled loss."""
    if precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16"
    return resolve_precision(precision, device)


def encoding_precision(training: str, device: torch.device) -> str:
    """The precision for labels and evaluation: fp16 if a GPU trains in bf16, as it is closer to fp32 and as fast."""
    return "fp16" if device.type == "cuda" and training == "bf16" else training


def micro_batches(network: nn.Module, sentences: int, count: int, ranks: Ranks) -> Iterator[np.ndarray]:
    """Indices of this rank's share of a batch, in `count` parts; ranks exchange gradients only at the last part."""
    for number, share in enumerate(micro_shares(sentences, ranks, count)):
        waits = isinstance(network, DistributedDataParallel) and number < count - 1
        with network.no_sync() if waits else contextlib.nullcontext():  # type: ignore[operator]
            yield share
