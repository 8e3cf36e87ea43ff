"""The figures of a log line: loss, speed and idle share of the steps since the last one."""

import contextlib
import time
from collections.abc import Iterator

import numpy as np
import torch

from shortstack.distillation.data.epochs import idle_share
from shortstack.distillation.data.labels import LabelledSentences
from shortstack.distillation.ranks import Ranks


class Meter:
    """Counts sentences, losses and seconds from one log line to the next.

    Args:
        ranks: all ranks of the run.
        losses: sum and number of the losses since the last log line, as `losses` gave them before the run was stopped.
    """

    def __init__(self, ranks: Ranks, losses: tuple[float, int] = (0.0, 0)) -> None:
        self._ranks = ranks
        self._start_again()
        self._loss_sum += losses[0] if ranks.is_main else 0.0
        self._losses = losses[1]

    def _start_again(self) -> None:
        self._since = time.perf_counter()
        self._sentences = 0
        # In fp64 a sum of fp32 losses is exact, whatever the order, so a resumed run logs the same mean.
        dtype = torch.float32 if self._ranks.device.type == "mps" else torch.float64  # Apple's GPUs have no fp64
        self._loss_sum = torch.zeros((), dtype=dtype, device=self._ranks.device)
        self._losses = 0
        self._idle: list[float] = []

    def count(self, batch: LabelledSentences, loss: torch.Tensor) -> None:
        """Count a step: its batch, all ranks together, and this rank's part of the loss."""
        self._sentences += len(batch)
        self._loss_sum += loss
        self._losses += 1
        self._idle.append(idle_share(batch.lengths, self._ranks.world))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the block's seconds out of the speed."""
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start

    def losses(self) -> tuple[float, int]:
        """Sum and number of the losses since the last log line. All ranks must come here together."""
        return float(self._ranks.sum(self._loss_sum.clone())), self._losses

    def read(self) -> dict[str, float]:
        """Mean loss of the steps since the last call, their speed, and their idle share.

        All ranks must come here together.
        """
        loss_sum, losses = self.losses()  # waits for the device, so the speed is that of finished steps
        speed = self._sentences / (time.perf_counter() - self._since)
        figures = {"loss": loss_sum / losses, "sentences_per_second": speed, "idle_share": float(np.mean(self._idle))}
        self._start_again()
        return figures
