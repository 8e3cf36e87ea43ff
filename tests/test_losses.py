"""Losses: values by hand, gradients, and batches that may be split."""

import math

import pytest
import torch
import torch.nn.functional as F

from shortstack.distillation import recipe
from shortstack.distillation.losses import LOSSES, cosine, mse

STUDENT = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]])
TEACHER = torch.tensor([[1.0, 1.0], [0.0, 1.0], [-3.0, -4.0]])


def random_pair(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(7, 5, generator=generator), torch.randn(7, 5, generator=generator)


def test_mse_by_hand() -> None:
    assert mse(STUDENT, TEACHER).tolist() == [0.5, 0.5, 50.0]
    torch.testing.assert_close(mse(*random_pair()).mean(), F.mse_loss(*random_pair()))


def test_cosine_by_hand() -> None:
    torch.testing.assert_close(cosine(STUDENT, TEACHER), torch.tensor([1 - math.sqrt(0.5), 0.0, 2.0]))


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_is_zero_at_the_teacher_and_its_gradient_is_right(name: str) -> None:
    student, teacher = random_pair()
    loss = LOSSES[name]
    assert loss(student, teacher).shape == (7,) and (loss(student, teacher) > 0).all()
    torch.testing.assert_close(loss(teacher, teacher), torch.zeros(7), atol=1e-6, rtol=0)
    student = student.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher.double()), [student])


def test_a_recipe_knows_each_by_name() -> None:
    assert tuple(LOSSES) == recipe.LOSSES


@pytest.mark.parametrize("name", LOSSES)
def test_a_split_batch_has_the_whole_ones_losses(name: str) -> None:
    student, teacher = random_pair()
    pieces = [LOSSES[name](student[rows], teacher[rows]) for rows in (slice(0, 3), slice(3, 7))]
    torch.testing.assert_close(torch.cat(pieces), LOSSES[name](student, teacher))


def test_mse_gradient_by_hand() -> None:
    student = STUDENT.clone().requires_grad_()
    mse(student, TEACHER).mean().backward()
    torch.testing.assert_close(student.grad, 2 * (STUDENT - TEACHER) / STUDENT.numel())


@pytest.mark.parametrize("name", LOSSES)
def test_a_zero_embedding_gives_no_nan(name: str) -> None:
    student = torch.zeros(3, 2, requires_grad=True)
    LOSSES[name](student, TEACHER).sum().backward()
    assert student.grad is not None and student.grad.isfinite().all()
