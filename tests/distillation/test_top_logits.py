"""The top-k loss: the whole loss at k = vocabulary, a bucket for the rest below."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_pretrain.distillation.losses import CPU_BLOCK_VALUES, distillation_loss
from sparse_pretrain.distillation.top_logits import top_distillation_loss, top_logits, top_shares

VOCABULARY = 50
ROWS = CPU_BLOCK_VALUES // VOCABULARY + 17


def logits(seed: int, rows: int = ROWS, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.5])
def test_the_whole_vocabulary_gives_the_whole_loss_and_gradient(temperature: float) -> None:
    """Up to what fp16 loses: 2^-11 of a logit's distance from the highest one."""
    mine, reference, teacher = logits(1).requires_grad_(), logits(1).requires_grad_(), logits(2)
    stored = top_logits(teacher, VOCABULARY, temperature)
    assert bool(torch.isneginf(stored.log_rest).all())
    found = top_distillation_loss(mine, stored, temperature)
    expected = distillation_loss(reference, teacher, temperature)
    found.backward()
    expected.backward()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(mine.grad, reference.grad, rtol=0, atol=2e-3)


@pytest.mark.parametrize("k", [1, 7, 49])
def test_k_tokens_and_a_bucket_by_hand(k: int) -> None:
    temperature = 2.0
    mine, reference, teacher = logits(1, 20).requires_grad_(), logits(1, 20).requires_grad_(), logits(2, 20)
    found = top_distillation_loss(mine, top_logits(teacher, k, temperature), temperature)
    share, own = F.softmax(teacher / temperature, -1), F.softmax(reference / temperature, -1)
    ids = teacher.topk(k).indices
    top, own_top = share.gather(1, ids), own.gather(1, ids)
    rest, own_rest = 1 - top.sum(1), 1 - own_top.sum(1)
    expected = temperature**2 * ((top * (top / own_top).log()).sum() + (rest * (rest / own_rest).log()).sum())
    found.backward()
    expected.backward()
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=0)
    torch.testing.assert_close(mine.grad, reference.grad, rtol=0, atol=2e-3)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.integers(1, VOCABULARY), st.floats(0.5, 8), st.floats(0.1, 10))
def test_stored_shares_are_a_distribution_and_the_loss_is_a_lower_bound(
    seed: int, k: int, temperature: float, scale: float
) -> None:
    """Merging outcomes never adds divergence (data-processing inequality)."""
    student, teacher = logits(seed, 5, scale), logits(seed + 1, 5, scale)
    stored = top_logits(teacher, k, temperature)
    log_top, rest = top_shares(stored, temperature)
    torch.testing.assert_close(log_top.exp().sum(1) + rest, torch.ones(5), rtol=0, atol=1e-5)
    assert (stored.ids[:, 0] == teacher.argmax(dim=1)).all()
    loss = float(top_distillation_loss(student, stored, temperature))
    whole = float(distillation_loss(student, teacher, temperature))
    assert -1e-3 * (1 + whole) <= loss <= whole * (1 + 1e-2) + 1e-2


def test_an_extreme_student_has_a_finite_loss_and_gradient() -> None:
    """All of its mass on one of the k tokens: the rest underflows as a probability, not as a logarithm."""
    teacher = logits(2, 3)
    student = torch.zeros(3, VOCABULARY)
    student[torch.arange(3), teacher.argmax(dim=1)] = 1e4
    student.requires_grad_()
    loss = top_distillation_loss(student, top_logits(teacher, 4, 1.0), 1.0)
    loss.backward()
    assert student.grad is not None
    assert bool(torch.isfinite(loss.detach()))
    assert bool(torch.isfinite(student.grad).all())
