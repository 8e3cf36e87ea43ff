"""The student's optimizer for one GPU: weights in flat arrays (flat.py), steps that CUDA graphs can record (graph.py).

It computes what optimizer.py computes. A CPU, several ranks and gradient accumulation use that one.
"""

from typing import Any

import torch

from shortstack.distillation.ranks import Ranks
from shortstack.distillation.recipe import Recipe
from shortstack.distillation.training.flat import FlatAdamW, FlatWeights
from shortstack.distillation.training.forward import FlatForward, groups_of
from shortstack.distillation.training.optimizer import StudentOptimizer
from shortstack.distillation.training.rows import BatchRows
from shortstack.model import Embedder
from shortstack.model.precision import dtype_of


def optimizer_for(student: Embedder, recipe: Recipe, ranks: Ranks) -> StudentOptimizer:
    """The optimizer that suits the device: flat weights on one GPU without accumulation, else torch's AdamW."""
    one_gpu = ranks.device.type == "cuda" and ranks.world == 1 and recipe.gradient_accumulation == 1
    flat = one_gpu and student.bert.layers()
    return (FlatOptimizer if flat else StudentOptimizer)(student, recipe, ranks)


class LossScale:
    """The factor that losses are multiplied by in fp16, so that small gradients do not vanish; kept on the device.

    A step whose gradient is not finite halves it; `growth_interval` finite steps in a row double it. These are
    torch.amp.GradScaler's rules, and checkpoints of the two have the same form. GradScaler itself waits for the device.
    Where it is not enabled, the factor stays 1.

    Source: Micikevicius et al., 2017 (https://arxiv.org/abs/1710.03740).
    """

    def __init__(
        self, device: torch.device, enabled: bool = True, scale: float = 2.0**16, growth_interval: int = 2000
    ) -> None:
        self.enabled, self.growth_interval = enabled, growth_interval
        self.scale = torch.full((), scale if enabled else 1.0, device=device)
        self._finite_steps = torch.zeros((), dtype=torch.int64, device=device)  # in a row, since the last change

    def update(self, left_out: torch.Tensor) -> None:
        """Change the scale after a step; `left_out`, () bool: its gradient was not finite."""
        if not self.enabled:
            return
        finite_steps = (self._finite_steps + 1) * ~left_out
        grows = finite_steps == self.growth_interval
        self.scale.mul_(torch.where(left_out, 0.5, 1.0)).mul_(torch.where(grows, 2.0, 1.0))
        self._finite_steps.copy_(finite_steps * ~grows)

    def state_dict(self) -> dict[str, float]:
        """For a checkpoint, with GradScaler's names; empty if not enabled."""
        if not self.enabled:
            return {}
        return {
            "scale": float(self.scale),
            "growth_factor": 2.0,
            "backoff_factor": 0.5,
            "growth_interval": self.growth_interval,
            "_growth_tracker": int(self._finite_steps),
        }

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore what `state_dict` of this class or of GradScaler gave."""
        self.scale.fill_(state["scale"])
        self._finite_steps.fill_(state["_growth_tracker"])


class FlatOptimizer(StudentOptimizer):
    """See `StudentOptimizer`. The student trains by `FlatForward`: one backward pass a step, into flat gradients.

    Attributes:
        adamw: a FlatAdamW; the token table's moments are kept in its state too.
        scaler: a LossScale.
    """

    def __init__(self, student: Embedder, recipe: Recipe, ranks: Ranks) -> None:
        super().__init__(student, recipe, ranks)
        assert ranks.world == 1 and recipe.gradient_accumulation == 1
        groups = groups_of(student.bert.layers())
        in_products = {parameter for group in groups for parameter in group}
        others = [[p] for p in student.parameters() if p.requires_grad and p not in in_products]
        # A CPU, where tests run this, trains fp16 by autocast over fp32 weights.
        half = recipe.precision != "fp16" or ranks.device.type != "cpu"
        self._products = FlatWeights(groups, dtype_of(recipe.precision) if half else torch.float32)
        self._others = FlatWeights(others, torch.float32)
        student.forward_in_training = FlatForward(student.bert, self._products)
        self.adamw: Any = FlatAdamW([self._products, self._others], recipe.learning_rate, recipe.weight_decay)
        self.scaler: Any = LossScale(ranks.device, enabled=recipe.precision == "fp16")
        self._learning_rate = recipe.learning_rate

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return self._learning_rate  # AdamW's own is on the device

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        self._learning_rate = rate
        self.adamw.set_rate(rate)

    def refresh(self) -> None:
        """Update the half-precision copies after the weights were changed from outside."""
        self.adamw.refresh()

    def backward(self, loss: torch.Tensor) -> None:
        """Compute the gradients of the step."""
        (loss * self.scaler.scale if self.scaler.enabled else loss).backward()

    def step(self, rows: BatchRows, count: torch.Tensor | None = None) -> None:
        """Change the weights by the last backward pass's gradients, of `rows` only the first `count`, if given."""
        of_rows = rows.vectors.grad
        assert of_rows is not None
        self._others.collect_gradients()
        gradients = [self._products.gradients, self._others.gradients, of_rows]
        norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
        self.grad_norm.copy_(torch.stack(norms).norm() / self.scaler.scale)
        left_out = ~self.grad_norm.isfinite()
        divisor = (self.grad_norm / self._max_norm).clamp(min=1) * self.scaler.scale  # clips in AdamW's own pass
        self.adamw.step(divisor, left_out)
        of_rows.div_(divisor)
        rows.step(self.adamw, left_out, count)
        self.scaler.update(left_out)
        self.skips[0] += left_out
        self.skips[1] = (self.skips[1] + 1) * left_out
