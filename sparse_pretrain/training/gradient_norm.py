"""The size of a gradient, without a copy of it in double precision."""

from collections.abc import Iterable

import torch
from torch import Tensor

# Squares are summed in fp32 inside a block and in fp64 between blocks: as exact as all of it in fp64, for our purpose.
BLOCK = 2**16


def sum_of_squares(gradients: Iterable[Tensor]) -> Tensor:
    """Return the sum of squares of all elements, fp64 []; NaN or infinite when an element is.

    Args:
        gradients: any float types and shapes, contiguous.
    """
    total = torch.zeros((), dtype=torch.float64)
    for gradient in gradients:
        blocks = gradient.detach().reshape(-1).split(BLOCK) if gradient.device.type == "cpu" else [gradient]
        norms = [torch.linalg.vector_norm(block.float()) for block in blocks]
        total = total.to(gradient.device) + torch.stack(norms).double().square().sum()
    return total
