"""A student's weights laid end to end, so that a step of the optimizer is one pass over each of a few long arrays.

Trained weights are in two arrays. Those of the layers' matrix products, nearly all, are what half precision is for:
beside the fp32 ones that AdamW changes there is a copy in half precision, which AdamW writes and the products read;
their gradients are in half precision too. All other weights stay in fp32. In fp32 there is no copy.

So a step neither casts weights, nor joins those of queries, keys and values, nor goes through lists of tensors.

Shapes: P weights in an array.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.adamw import adamw as torch_adamw

from shortstack.model import kernels

ALIGNED = 64  # numbers: where a group of weights may begin, so that products read them fastest


class FlatWeights:
    """Parameters, each a view of one fp32 array from now on; with gradients, AdamW's moments, and a copy for products.

    Args:
        groups: parameters; those of a group lie directly behind one another, and can be read as one.
        dtype: of the copy and of the gradients; fp32 makes no copy.

    Attributes:
        masters: the weights, (P,) fp32.
        values: what products read: `masters`, or their copy in half precision, (P,).
        gradients: (P,), in the type of `values`.
        moments: AdamW's means and mean squares, (P,) fp32 each.
        steps: that were taken, () fp32.
    """

    def __init__(self, groups: Sequence[Sequence[nn.Parameter]], dtype: torch.dtype) -> None:
        self.parameters = [parameter for group in groups for parameter in group]
        self._starts: dict[nn.Parameter, int] = {}
        end = 0
        for group in groups:
            for parameter in group:
                self._starts[parameter] = end
                end += parameter.numel()
            end += -end % ALIGNED
        device = self.parameters[0].device
        self.masters = torch.zeros(end, device=device)
        for parameter in self.parameters:
            place = self.view(self.masters, parameter)
            place.copy_(parameter.detach())
            parameter.data = place
        self.values = self.masters.to(dtype)  # no copy where it is fp32 already
        self.gradients = torch.zeros_like(self.values)
        self.moments = torch.zeros_like(self.masters), torch.zeros_like(self.masters)
        self.steps = torch.zeros((), device=device)

    def view(self, flat: torch.Tensor, *parameters: nn.Parameter) -> torch.Tensor:
        """A parameter's part of one of the arrays in its own shape; several of a group are joined along their rows."""
        start = self._starts[parameters[0]]
        rows = sum(len(parameter) for parameter in parameters)
        part = flat[start : start + sum(parameter.numel() for parameter in parameters)]
        return part.view(rows, *parameters[0].shape[1:])

    def state(self) -> dict[nn.Parameter, dict[str, torch.Tensor]]:
        """The moments by parameter, under the names that torch's AdamW gives them; changing them changes these."""
        means, squares = self.moments
        return {
            parameter: {
                "step": self.steps,
                "exp_avg": self.view(means, parameter),
                "exp_avg_sq": self.view(squares, parameter),
            }
            for parameter in self.parameters
        }

    def refresh(self) -> None:
        """Make the copy follow weights that something else has changed."""
        if self.values is not self.masters:
            self.values.copy_(self.masters)

    def collect_gradients(self) -> None:
        """Take the gradients that autograd left at the parameters, and leave none there."""
        found = [parameter for parameter in self.parameters if parameter.grad is not None]
        gradients = [parameter.grad for parameter in found if parameter.grad is not None]
        if len(found) < len(self.parameters):
            self.gradients.zero_()
        if found:
            places = [self.view(self.gradients, parameter) for parameter in found]
            torch._foreach_copy_(places, gradients)
        for parameter in found:
            parameter.grad = None


class FlatAdamW:
    """AdamW over flat weights (Loshchilov and Hutter, 2017, https://arxiv.org/abs/1711.05101).

    Attributes:
        flats: what it changes.
        param_groups: one group of settings, as torch's optimizers have it. On a GPU the rate is a number there, so that
            a captured step reads the rate of the day.
        state: moments and steps by parameter, as torch's AdamW has it.
    """

    def __init__(self, flats: Sequence[FlatWeights], rate: float, weight_decay: float) -> None:
        self.flats = [flat for flat in flats if flat.parameters]
        device = self.flats[0].masters.device
        self.param_groups: list[dict[str, Any]] = [
            {
                "params": [parameter for flat in self.flats for parameter in flat.parameters],
                "lr": rate if device.type == "cpu" else torch.tensor(rate, device=device),
                "betas": (0.9, 0.999),
                "eps": 1e-8,
                "weight_decay": weight_decay,
            }
        ]
        self.state: dict[nn.Parameter, dict[str, torch.Tensor]] = defaultdict(dict)
        for flat in self.flats:
            self.state.update(flat.state())

    def set_rate(self, rate: float) -> None:
        """The learning rate of the steps from now on."""
        (group,) = self.param_groups
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate

    def refresh(self) -> None:
        """Follow weights that something else has changed."""
        for flat in self.flats:
            flat.refresh()

    def step(self, divisor: torch.Tensor, left_out: torch.Tensor) -> None:
        """Change the weights by their gradients over `divisor`, () fp32, unless `left_out`, () bool, is true."""
        by_kernel = kernels.runs_on(divisor)
        for flat in self.flats:
            if by_kernel:
                self._step_by_kernel(flat, divisor, left_out)
            else:
                self._step(flat, divisor, left_out)

    def _step(self, flat: FlatWeights, divisor: torch.Tensor, left_out: torch.Tensor) -> None:
        """By torch's fused AdamW: one tensor, which it divides, checks and changes in one pass."""
        (group,), (beta1, beta2) = self.param_groups, self.param_groups[0]["betas"]
        settings = {key: group[key] for key in ("lr", "eps", "weight_decay")}
        means, squares = flat.moments
        gradients = flat.gradients.float()  # themselves, where they are in fp32
        torch_adamw(
            [flat.masters], [gradients], [means], [squares], [], [flat.steps], beta1=beta1, beta2=beta2, **settings,
            fused=True, amsgrad=False, maximize=False, grad_scale=divisor, found_inf=left_out.float(),
        )  # fmt: skip
        flat.refresh()

    def _step_by_kernel(self, flat: FlatWeights, divisor: torch.Tensor, left_out: torch.Tensor) -> None:
        """By a kernel of our own, which reads half gradients and writes the half copy too."""
        (group,) = self.param_groups
        flat.steps += ~left_out
        corrections = [1 - beta ** flat.steps.double() for beta in group["betas"]]  # in fp32 they would lose digits
        rate = torch.as_tensor(group["lr"], device=divisor.device)
        scalars = torch.stack([number.float() for number in (rate, divisor, *corrections, ~left_out)])
        arrays = flat.masters, flat.values, flat.gradients, *flat.moments
        kernels.adamw(arrays, scalars, group["betas"], group["eps"], group["weight_decay"])
