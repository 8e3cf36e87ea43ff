"""What a log line says of the steps since the last one."""

import numpy as np
import pytest
import torch
from tiny import tokens_of

from shortstack.distillation.data.labels import LabelledSentences
from shortstack.distillation.ranks import Ranks
from shortstack.distillation.training.meter import Meter

ALONE = Ranks(0, 1, torch.device("cpu"))
LOSSES = torch.tensor([0.1, 1e-7, 3.0, 0.7])


@pytest.fixture
def window() -> LabelledSentences:
    return LabelledSentences(tokens_of([0, 1], [0, 1, 2], [0, 1, 2, 3, 4]), torch.zeros(3, 4))


def test_the_loss_is_the_mean_since_the_last_line(window: LabelledSentences) -> None:
    meter = Meter(ALONE)
    for loss in LOSSES[:2]:
        meter.count(window.take(np.array([0, 1])), loss)
    assert meter.read()["loss"] == pytest.approx(float(LOSSES[:2].mean()))
    meter.count(window.take(np.array([0])), LOSSES[2])
    assert meter.read()["loss"] == 3.0


def test_a_resumed_run_logs_the_same_mean(window: LabelledSentences) -> None:
    whole, stopped = Meter(ALONE), Meter(ALONE)
    for loss in LOSSES:
        whole.count(window.take(np.array([0, 1, 2])), loss)
    for loss in LOSSES[:3]:
        stopped.count(window.take(np.array([0, 1, 2])), loss)
    resumed = Meter(ALONE, stopped.losses())
    resumed.count(window.take(np.array([0, 1, 2])), LOSSES[3])
    assert resumed.read()["loss"] == whole.read()["loss"]
