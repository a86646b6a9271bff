"""Both losses in one pass against each of them alone: the same sums, the same gradient."""

import pytest
import torch
from torch import Tensor

from sparse_pretrain.data.masking import IGNORED
from sparse_pretrain.distillation.losses import CPU_BLOCK_VALUES, distillation_loss, masked_language_loss
from sparse_pretrain.distillation.token_losses import token_losses

VOCABULARY = 50
# Two whole blocks and a ragged one; the second block predicts nothing.
BLOCK = CPU_BLOCK_VALUES // VOCABULARY
ROWS = 2 * BLOCK + 17


def logits(seed: int, dtype: torch.dtype) -> Tensor:
    return (torch.randn(ROWS, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3).to(dtype)


def labels(nothing: bool = False) -> Tensor:
    chosen = torch.randint(0, VOCABULARY, (ROWS,), generator=torch.Generator().manual_seed(9))
    chosen[torch.rand(ROWS, generator=torch.Generator().manual_seed(8)) > 0.15] = IGNORED
    chosen[BLOCK : 2 * BLOCK] = IGNORED
    return torch.full_like(chosen, IGNORED) if nothing else chosen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("everywhere", [True, False])
@pytest.mark.parametrize("upstream", [1.0, 1024.0])
def test_they_are_the_two_losses(dtype: torch.dtype, everywhere: bool, upstream: float) -> None:
    mine, apart = logits(1, dtype).requires_grad_(), logits(1, dtype).float().requires_grad_()
    teacher, wanted = logits(2, dtype), labels()
    mlm_weight, kd_weight = 0.3 / 700, 0.5 / ROWS
    found = token_losses(mine, teacher, wanted, mlm_weight, kd_weight, 2.0, everywhere)
    mlm = masked_language_loss(apart, wanted)
    rows = slice(None) if everywhere else wanted != IGNORED
    follow = distillation_loss(apart[rows], teacher.float()[rows], 2.0)
    expected = mlm_weight * mlm + kd_weight * follow
    torch.testing.assert_close(found.total, expected.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(found.mlm, mlm.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(found.distillation, follow.detach(), rtol=1e-5, atol=0)
    (found.total * upstream).backward()
    (expected * upstream).backward()
    assert mine.grad is not None
    assert apart.grad is not None
    scale = float(apart.grad.abs().max())
    # Half precision rounds what is kept, once for each of the two losses.
    step = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-9}[dtype]
    torch.testing.assert_close(mine.grad.float() / scale, apart.grad / scale, rtol=step, atol=step / 2)


def test_half_precision_keeps_gradients_that_the_weights_alone_would_lose() -> None:
    """A weight of 1e-8 is zero in fp16; with the loss scale on its way it is not."""
    mine = logits(1, torch.float16).requires_grad_()
    found = token_losses(mine, logits(2, torch.float16), labels(), 1e-8, 1e-8, 2.0, True)
    (found.total * 2.0**16).backward()
    assert mine.grad is not None
    assert int(torch.count_nonzero(mine.grad)) > 0.9 * mine.grad.numel()


@pytest.mark.parametrize("everywhere", [True, False])
def test_nothing_to_predict(everywhere: bool) -> None:
    mine = logits(1, torch.float32).requires_grad_()
    found = token_losses(mine, logits(2, torch.float32), labels(nothing=True), 0.5, 0.5, 2.0, everywhere)
    assert float(found.mlm) == 0.0
    assert (float(found.distillation) > 0) == everywhere
    found.total.backward()  # type: ignore[no-untyped-call]
    assert mine.grad is not None
    assert bool(mine.grad.any()) == everywhere


def test_no_gradient_is_made_when_none_is_asked_for() -> None:
    found = token_losses(logits(1, torch.float32), logits(2, torch.float32), labels(), 1.0, 1.0, 2.0, True)
    assert not found.total.requires_grad
