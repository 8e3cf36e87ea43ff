"""Names of devices to test on."""

import pytest
import torch

ON_GPU = pytest.param("cuda", marks=pytest.mark.gpu)


def device_named(name: str) -> torch.device:
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    torch.cuda.set_device(0)
    return torch.device("cuda", 0)
