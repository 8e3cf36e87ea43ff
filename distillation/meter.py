"""What a log line says of the steps since the last one."""

import contextlib
import time
from collections.abc import Iterator

import numpy as np
import torch

from distillation.data.batches import rank_share
from distillation.data.labels import LabelledSentences
from distillation.ranks import Ranks


class Meter:
    """Counts sentences, losses and seconds from one log line to the next."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._start_again()

    def _start_again(self) -> None:
        self._since = time.perf_counter()
        self._sentences = 0
        self._loss = torch.zeros((), device=self._ranks.device)
        self._idle: list[float] = []

    def count(self, window: LabelledSentences, batch: np.ndarray, loss: torch.Tensor) -> None:
        """Count a step: its batch, all ranks together, and this rank's part of the loss."""
        self._sentences += len(batch)
        self._loss = loss
        self._idle.append(idle_share(window, batch, self._ranks.world))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the block's seconds out of the speed."""
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start

    def read(self) -> dict[str, float]:
        """Loss of the last step, which a resumed run gives again, and speed and idle share of all steps; starts again.

        All ranks must come here together.
        """
        loss = float(self._ranks.sum(self._loss))  # waits for the device, so the speed is a whole one
        speed = self._sentences / (time.perf_counter() - self._since)
        figures = {"loss": loss, "sentences_per_second": speed, "idle_share": float(np.mean(self._idle))}
        self._start_again()
        return figures


def idle_share(window: LabelledSentences, batch: np.ndarray, world: int) -> float:
    """The share of the ranks' time spent waiting for the one with the most tokens."""
    tokens = [sum(len(window.tokens[index]) for index in rank_share(batch, rank, world)) for rank in range(world)]
    return 1 - sum(tokens) / (world * max(tokens))
