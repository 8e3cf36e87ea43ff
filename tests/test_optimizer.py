"""StudentOptimizer: what is clipped, what is left out, and how fp16's scale follows."""

import math
from pathlib import Path

import pytest
import torch
from tiny import tokens_of

from shortstack.distillation.ranks import Ranks
from shortstack.distillation.recipe import Recipe
from shortstack.distillation.training.flat_optimizer import LossScale
from shortstack.distillation.training.optimizer import StudentOptimizer
from shortstack.model import Embedder

SENTENCES = tokens_of([2, 9, 3], [2, 9, 11, 3])


@pytest.fixture
def student(tiny_model_dir: Path) -> Embedder:
    return Embedder.load(tiny_model_dir, device="cpu", precision="fp32").train()


def optimizer_of(student: Embedder, **settings: object) -> StudentOptimizer:
    recipe = Recipe(**{"precision": "fp32", "learning_rate": 1e-3} | settings)  # type: ignore[arg-type]
    return StudentOptimizer(student, recipe, Ranks(0, 1, torch.device("cpu")))


def step(student: Embedder, optimizer: StudentOptimizer, dense: float = 1.0, words: float = 1.0) -> None:
    """A step whose loss is multiplied by a number where the gradient goes to the layers, and where it goes to words."""
    rows = optimizer.take_rows(SENTENCES)
    loss = student(rows.pack(SENTENCES)).square().sum() * dense + rows.vectors.square().sum() * words
    optimizer.backward(loss)
    optimizer.step(rows)


def weights(student: Embedder) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in student.state_dict().items()}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("bad", [{"dense": float("nan")}, {"words": float("inf")}], ids=["layers", "words"])
def test_a_gradient_that_is_not_finite_changes_nothing(
    student: Embedder, precision: str, bad: dict[str, float]
) -> None:
    optimizer = optimizer_of(student, precision=precision)
    step(student, optimizer)
    before, moments = weights(student), [value.clone() for value in optimizer.adamw.state[optimizer.table].values()]
    step(student, optimizer, **bad)
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
    after = optimizer.adamw.state[optimizer.table].values()
    assert all(torch.equal(one, other) for one, other in zip(moments, after, strict=True))
    assert optimizer.skips.tolist() == [1, 1]
    step(student, optimizer)
    assert any(not torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
    assert optimizer.skips.tolist() == [1, 0]


def test_an_overflow_of_the_word_rows_halves_the_scale_and_restarts_its_growth(student: Embedder) -> None:
    optimizer = optimizer_of(student, precision="fp16")
    optimizer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    for words, scale in ((1.0, 2**10), (1.0, 2**10), (float("inf"), 2**9), (1.0, 2**9), (1.0, 2**9), (1.0, 2**10)):
        step(student, optimizer, words=words)
        assert optimizer.scaler.get_scale() == scale


def test_a_scaled_loss_takes_the_plain_ones_step(student: Embedder, tiny_model_dir: Path) -> None:
    other = Embedder.load(tiny_model_dir, device="cpu", precision="fp32").train()
    plain, scaled = optimizer_of(student), optimizer_of(other, precision="fp16")
    for _ in range(2):
        step(student, plain)
        step(other, scaled)
    torch.testing.assert_close(scaled.grad_norm, plain.grad_norm)
    for name, tensor in student.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], tensor, atol=1e-6, rtol=1e-5)


def test_the_norm_is_of_all_weights_and_is_clipped(student: Embedder) -> None:
    optimizer = optimizer_of(student, max_grad_norm=1e-3)
    rows = optimizer.take_rows(SENTENCES)
    optimizer.backward((student(rows.pack(SENTENCES)) - 1).square().sum())
    gradients = [p.grad for p in optimizer.adamw.param_groups[0]["params"] if p.grad is not None]
    whole = torch.cat([gradient.flatten() for gradient in [*gradients, rows.vectors.grad]]).norm()
    words = rows.vectors.grad.norm().clone()
    optimizer.step(rows)
    torch.testing.assert_close(optimizer.grad_norm, whole, rtol=1e-5, atol=0)
    torch.testing.assert_close(rows.vectors.grad.norm(), words * 1e-3 / whole, rtol=1e-3, atol=0)


def test_the_loss_scale_on_the_device_follows_torchs_rules() -> None:
    """And each goes on from the other's state."""
    ours = LossScale(torch.device("cpu"), scale=2.0**10, growth_interval=3)
    theirs = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    weight = torch.nn.Parameter(torch.zeros(()))
    sgd = torch.optim.SGD([weight])
    for number, overflows in enumerate([0, 0, 0, 1, 0, 0, 1, 1, 0, 0, 0, 0]):
        weight.grad = torch.tensor(math.inf if overflows else 1.0)
        theirs.scale(torch.zeros(()))  # makes its tensors
        theirs.step(sgd)
        theirs.update()
        ours.update(torch.tensor(bool(overflows)))
        assert ours.state_dict() == theirs.state_dict()
        if number == 4:
            ours, fresh = LossScale(torch.device("cpu"), growth_interval=3), torch.amp.GradScaler("cpu")
            ours.load_state_dict(theirs.state_dict())
            fresh.load_state_dict(ours.state_dict())
            assert fresh.state_dict() == theirs.state_dict()
    assert LossScale(torch.device("cpu"), enabled=False).state_dict() == {}
