"""The block-wise losses against torch's own, values and gradients."""

import pytest
import torch
import torch.nn.functional as F

from sparse_pretrain.data.masking import IGNORED
from sparse_pretrain.distillation.losses import CPU_BLOCK_VALUES, distillation_loss, masked_language_loss

VOCABULARY = 50
# Two whole blocks and a ragged one.
ROWS = 2 * (CPU_BLOCK_VALUES // VOCABULARY) + 17


def logits(seed: int) -> torch.Tensor:
    return torch.randn(ROWS, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3


def labels() -> torch.Tensor:
    chosen = torch.randint(0, VOCABULARY, (ROWS,), generator=torch.Generator().manual_seed(9))
    chosen[::3] = IGNORED
    return chosen


def test_masked_language_loss_and_gradient() -> None:
    mine, reference = logits(1).requires_grad_(), logits(1).requires_grad_()
    found = masked_language_loss(mine, labels()) * 0.5
    expected = F.cross_entropy(reference, labels(), ignore_index=IGNORED, reduction="sum") * 0.5
    found.backward()
    expected.backward()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(mine.grad, reference.grad, rtol=0, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.5])
def test_distillation_loss_and_gradient(temperature: float) -> None:
    mine, reference, teacher = logits(1).requires_grad_(), logits(1).requires_grad_(), logits(2)
    found = distillation_loss(mine, teacher, temperature) / 7
    expected = (
        F.kl_div(
            F.log_softmax(reference / temperature, -1), F.softmax(teacher / temperature, -1), reduction="sum"
        )
        * temperature**2
        / 7
    )
    found.backward()
    expected.backward()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(mine.grad, reference.grad, rtol=0, atol=1e-6)


def test_a_student_that_equals_its_teacher_has_nothing_to_learn() -> None:
    student = logits(1).requires_grad_()
    loss = distillation_loss(student, logits(1), 2.0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-4)
    assert student.grad is not None
    assert float(student.grad.abs().max()) < 1e-6


def test_nothing_to_predict_is_a_loss_of_zero() -> None:
    student = logits(1).requires_grad_()
    loss = masked_language_loss(student, torch.full((ROWS,), IGNORED))
    loss.backward()
    assert float(loss.detach()) == 0
    assert not student.grad.any()
