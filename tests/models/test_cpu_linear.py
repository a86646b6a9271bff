"""Linear layers on CPUs: the slow twin is torch's own."""

import pytest
import torch
from torch import nn

from sparse_pretrain.models.cpu_linear import BLOCK, LARGEST, CpuLinear, quicken_linear, transposed


@pytest.mark.parametrize("rows", [1, BLOCK - 1, BLOCK, 3 * BLOCK + 5])
def test_a_transpose_is_one(rows: int) -> None:
    matrix = torch.randn(rows, 7)
    assert torch.equal(transposed(matrix), matrix.t())
    assert transposed(matrix).is_contiguous()


@pytest.mark.parametrize("shape", [(5, 12), (3, 40, 12)])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_torchs(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(12, 9, bias=bias).to(torch.bfloat16)
    inputs = torch.randn(shape).to(torch.bfloat16)
    results = []
    for quick in (False, True):
        layer.zero_grad()
        values = inputs.clone().requires_grad_()
        if quick:
            quicken_linear(layer)
            assert type(layer) is CpuLinear
        output = layer(values)
        output.float().square().sum().backward()
        results.append([output, values.grad, *(weight.grad.clone() for weight in layer.parameters())])  # type: ignore[union-attr]
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0.02, atol=0.02)


def test_what_needs_no_gradient_gets_none() -> None:
    layer = nn.Linear(4, 3).to(torch.bfloat16)
    quicken_linear(layer)
    layer.weight.requires_grad_(False)
    values = torch.randn(2, 4).to(torch.bfloat16)
    layer(values).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is not None
    with torch.no_grad():
        assert not layer(values).requires_grad


def test_a_vocabulary_and_other_kinds_of_layers_stay() -> None:
    class Own(nn.Linear):
        pass

    model = nn.ModuleList([nn.Linear(1, LARGEST + 1), Own(2, 2), nn.Linear(2, 2)])
    quicken_linear(model)
    assert [type(layer) for layer in model] == [nn.Linear, Own, CpuLinear]
