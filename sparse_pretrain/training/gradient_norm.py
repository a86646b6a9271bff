"""The size of a gradient, without a copy of it in double precision."""

from collections.abc import Iterable

import torch
from torch import Tensor

# Elements whose squares are summed in fp32 before fp64 takes over: as exact as fp64 for our purpose (1e-8 measured;
# torch's `vector_norm` is off by 5e-6 there), and on a CPU they stay in a core's cache.
BLOCK = 2**20
# A GPU sums in a tree, and wants enough work for each of its kernels.
GPU_BLOCK = 2**24


def sum_of_squares(gradients: Iterable[Tensor]) -> Tensor:
    """Return the sum of squares of all elements, fp64 []; NaN or infinite when an element is.

    Args:
        gradients: any float types and shapes, contiguous.
    """
    sums = [
        block.float().square().sum()
        for gradient in gradients
        for block in gradient.detach()
        .reshape(-1)
        .split(BLOCK if gradient.device.type == "cpu" else GPU_BLOCK)
    ]
    return torch.stack(sums).double().sum() if sums else torch.zeros((), dtype=torch.float64)
