"""The non-zero values of a matrix in fewer bits: fp32, bf16, fp16, or int8 with a scale for every output row."""

from typing import Literal

import torch
from torch import Tensor

from sparse_pretrain.errors import UserError

Precision = Literal["exact", "fp32", "bf16", "fp16", "int8"]
Others = Literal["exact", "bf16", "fp16"]
FLOATS: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
INT8_LARGEST = 127


def stored_dtype(precision: Precision, own: torch.dtype) -> torch.dtype:
    """Return the type that values are stored in; `exact` means the matrix's own."""
    if precision == "int8":
        return torch.int8
    return own if precision == "exact" else FLOATS[precision]


def row_scales(matrix: Tensor) -> Tensor:
    """Return the symmetric int8 scale of each output row: max |w| / 127 as fp32 [rows], 0 for a row of zeros."""
    rows = matrix.reshape(matrix.shape[0], -1).to(torch.float32)
    largest = rows.abs().amax(dim=1) if rows.numel() else rows.new_zeros(matrix.shape[0])
    return largest / INT8_LARGEST


def quantise(matrix: Tensor) -> Tensor:
    """Return the matrix as int8: w / scale of its row, rounded to the nearest (halves to even)."""
    scales = row_scales(matrix).view(-1, *[1] * (matrix.dim() - 1))
    # A row of zeros has scale 0, and one of denormal numbers may: both become zeros.
    ratios = torch.where(scales > 0, matrix.to(torch.float32) / scales, 0.0)
    return ratios.round().clamp(-INT8_LARGEST, INT8_LARGEST).to(torch.int8)


def dequantise(integers: Tensor, scales: Tensor) -> Tensor:
    """Return int8 values times the scale of their row, fp32."""
    return integers.to(torch.float32) * scales.view(-1, *[1] * (integers.dim() - 1))


def check_range(name: str, matrix: Tensor, precision: Precision) -> None:
    """Refuse values that the precision cannot hold.

    Raises:
        UserError: NaN or infinity for int8, or a value that becomes infinite.
    """
    if precision == "exact" or matrix.numel() == 0:
        return
    if precision == "int8":
        if not bool(torch.isfinite(matrix).all()):
            raise UserError(f"{name}: holds NaN or infinity, which int8 cannot; is the model what you mean?")
        return
    largest = torch.finfo(FLOATS[precision]).max
    beyond = int((matrix.abs() > largest).logical_and_(torch.isfinite(matrix)).sum())
    if beyond:
        raise UserError(f"{name}: {beyond:,} values are beyond {precision}'s {largest:g}; use --dtype bf16")
