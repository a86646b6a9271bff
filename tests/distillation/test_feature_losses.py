"""Squared errors against plain torch, values and gradients."""

import torch

from sparse_pretrain.distillation.feature_losses import attention_loss, hidden_loss, squared_error
from sparse_pretrain.distillation.losses import CPU_BLOCK_VALUES

WIDTH = 40
# Two whole blocks and a ragged one.
ROWS = 2 * (CPU_BLOCK_VALUES // WIDTH) + 11


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_weighted_squared_error_and_gradient() -> None:
    mine, reference = (
        random(ROWS, WIDTH, seed=1).requires_grad_(),
        random(ROWS, WIDTH, seed=1).requires_grad_(),
    )
    teacher, weights = random(ROWS, WIDTH, seed=2).requires_grad_(), random(ROWS, seed=3).abs()
    found = squared_error(mine, teacher, weights) * 0.5
    expected = 0.5 * (weights[:, None] * (reference - teacher.detach()) ** 2).sum()
    found.backward()
    expected.backward()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(mine.grad, reference.grad, rtol=1e-5, atol=1e-6)
    assert teacher.grad is None


def test_padding_counts_for_nothing() -> None:
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    student, teacher = random(2, 3, WIDTH, seed=1), random(2, 3, WIDTH, seed=2)
    expected = ((student - teacher) ** 2).mean(-1)[mask.bool()].sum()
    torch.testing.assert_close(hidden_loss(student, teacher, mask), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(
        hidden_loss(student, teacher, None), ((student - teacher) ** 2).mean(-1).sum(), rtol=1e-5, atol=0
    )


def test_attention_by_hand() -> None:
    """One row of two real tokens and a padded one. Squared differences: heads 0.01 and 0.04 a key."""
    student = torch.tensor([[[[0.6, 0.4, 0.0]] * 3, [[0.3, 0.7, 0.0]] * 3]])
    teacher = torch.full_like(student, 0.5)
    teacher[..., 2] = 0.0
    mask = torch.tensor([[1, 1, 0]])
    # Two query tokens, each the mean over two heads and two keys: (0.01 + 0.04) / 2.
    torch.testing.assert_close(attention_loss(student, teacher, mask), torch.tensor(0.05))
    # Means over heads: 0.45 and 0.55 against 0.5.
    one_head = teacher[:, :1]
    torch.testing.assert_close(attention_loss(student, one_head, mask), torch.tensor(2 * 0.0025))


def test_fp16_gradients_do_not_vanish_before_the_loss_scale_reaches_them() -> None:
    """12 heads, 128 keys, probabilities near 1 / 128, a loss scale of 2^16 over 512 tokens."""
    like = torch.softmax(random(4, 12, 128, 128, seed=1) * 0.1, dim=-1).half()
    teacher = torch.softmax(random(4, 12, 128, 128, seed=2) * 0.1, dim=-1).half()
    gradients = []
    for kind in (torch.float16, torch.float32):
        student = like.to(kind, copy=True).requires_grad_()
        (attention_loss(student, teacher.to(kind), None) * (2**16 / 512)).backward()
        assert student.grad is not None
        gradients.append(student.grad.float())
    half, single = gradients
    assert (half[single != 0] != 0).float().mean() >= 0.95
    torch.testing.assert_close(half, single, rtol=1e-2, atol=1e-7)


def test_bf16_keeps_its_own_precision_for_the_gradient() -> None:
    student = random(2, 3, WIDTH, seed=1).bfloat16().requires_grad_()
    loss = hidden_loss(student, random(2, 3, WIDTH, seed=2).bfloat16(), None)
    loss.backward()
    assert loss.dtype == torch.float32
    assert student.grad is not None
    assert student.grad.dtype == torch.bfloat16
