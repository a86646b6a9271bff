"""2:4 as tensor cores read it: of every four consecutive inputs two values, and two bits for the place of each.

(Mishra et al. 2021, section 3.) The four bits of a group are index of the first value + 4 x index of the second, which
is torch's and CUTLASS's metadata before they reorder it for the hardware; where a group keeps fewer than two values,
the places that are filled up are torch's choice as well.
"""

import numpy as np
import torch
from torch import Tensor

from sparse_pretrain.export.packed import INTEGERS
from sparse_pretrain.pruning.structures.n_of_m import highest

GROUP = 4
KEPT = 2
# The two places of a group, by its four bits; the ten other values of four bits are none.
PLACES = {first + GROUP * second: (first, second) for second in range(GROUP) for first in range(second)}
# What is filled up with first: place 2, then place 3, as torch does.
FILLING = torch.tensor([0, 0, 2, 1], dtype=torch.uint8)
NOT_ZERO, MINUS_ZERO = 16, 8


def pattern_problem(matrix: Tensor, mask: Tensor | None) -> str | None:
    """Return why a matrix is not 2:4 along its inputs (its last dimension), None when it is.

    Args:
        matrix: weights [rows, columns].
        mask: what the mask file keeps, or None; such weights count although they are zero.
    """
    if matrix.dim() != 2:
        return f"has {matrix.dim()} dimensions, 2:4 needs two"
    if matrix.shape[1] % GROUP:
        return f"has {matrix.shape[1]} columns, 2:4 needs a multiple of four"
    counts = needed(matrix, mask).view(matrix.shape[0], -1, GROUP).sum(dim=2, dtype=torch.uint8)
    too_many = counts > KEPT
    if not bool(too_many.any()):
        return None
    row, group = (int(place) for place in too_many.nonzero()[0])
    return (
        f"row {row}, columns {GROUP * group} to {GROUP * group + GROUP - 1}: {int(counts[row, group])} of four are "
        f"kept, 2:4 allows two ({int(too_many.sum()):,} of {counts.numel():,} groups have more)"
    )


def needed(matrix: Tensor, mask: Tensor | None) -> Tensor:
    """Return which elements have to be stored: those that are not zero, and those of the mask."""
    present = matrix != 0
    return present if mask is None else present | mask


def places(matrix: Tensor, mask: Tensor | None) -> Tensor:
    """Return which two of every four are stored, bool [rows, columns].

    Where fewer are needed: -0.0 next, so that it comes back as itself where there is room.
    """
    score = FILLING.repeat(matrix.numel() // GROUP).view(matrix.shape)
    bits = matrix.contiguous().view(INTEGERS[matrix.element_size()])
    score = score + MINUS_ZERO * (bits != 0).to(torch.uint8) + NOT_ZERO * needed(matrix, mask).to(torch.uint8)
    return highest(score.view(-1, GROUP), KEPT).reshape(matrix.shape)


def lost_minus_zeros(matrix: Tensor, mask: Tensor | None) -> int:
    """Return how many -0.0 find no room among two of four, and come back as 0.0."""
    bits = matrix.contiguous().view(INTEGERS[matrix.element_size()])
    return int(((bits != 0) & ~places(matrix, mask)).sum())


def compress(matrix: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return a 2:4 matrix's values [rows, columns / 2] and places, uint8 [ceil(groups / 2)]: two groups a byte.

    The first group of a byte has its low four bits; a last half byte is 0.
    """
    stored = places(matrix, mask)
    integers = matrix.contiguous().view(INTEGERS[matrix.element_size()])
    # Moved as integers: a float's way may change a NaN.
    values = integers[stored].view(matrix.dtype).view(matrix.shape[0], -1)
    zero, one, two, three = stored.view(-1, GROUP).numpy().T
    first = np.where(zero, 0, np.where(one, 1, 2))
    second = np.where(three, 3, np.where(two, 2, 1))
    bits = (first + GROUP * second).astype(np.uint8)
    padded = np.pad(bits, (0, len(bits) % 2))
    return values, torch.from_numpy(padded[0::2] | padded[1::2] << 4)


def expand(values: Tensor, packed: Tensor, shape: torch.Size) -> Tensor:
    """Return the dense matrix that `compress` took apart.

    Raises:
        ValueError: values, places and shape do not belong together, or four bits are no two places.
    """
    groups = shape.numel() // GROUP
    if len(shape) != 2 or shape[1] % GROUP or values.shape != (shape[0], shape[1] // GROUP * KEPT):
        raise ValueError(f"values of shape {list(values.shape)} for a matrix of shape {list(shape)}")
    if packed.shape != (-(-groups // 2),):
        raise ValueError(f"{packed.numel()} bytes of places for {groups} groups")
    bits = torch.stack([packed & 15, packed >> 4], dim=1).view(-1)
    if bool(bits[groups:].any()):
        raise ValueError("its last half byte is not 0")
    table = torch.zeros(16, GROUP, dtype=torch.bool)
    for code, (first, second) in PLACES.items():
        table[code, first] = table[code, second] = True
    stored = table[bits[:groups].long()]
    if int(stored.sum()) != KEPT * groups:
        raise ValueError("four bits are no two places")
    dense = torch.zeros(shape, dtype=INTEGERS[values.element_size()])
    dense[stored.view(shape)] = values.contiguous().view(dense.dtype).view(-1)
    return dense.view(values.dtype)
