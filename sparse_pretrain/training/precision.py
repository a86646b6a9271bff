"""Which number format the forward pass uses on this hardware."""

from typing import Literal

import torch

from sparse_pretrain.config.recipe import Precision
from sparse_pretrain.errors import UserError
from sparse_pretrain.processor import processor_flags

Resolved = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(wanted: Precision) -> Resolved:
    """Return the precision to train in.

    `auto` takes bf16 where the hardware multiplies it natively (NVIDIA from Ampere on, CPUs with
    AVX512-BF16 or AMX) and fp32 elsewhere; fp32 masters are kept in every case.

    Raises:
        UserError: fp16 without a GPU (DeepSpeed has no fp16 on CPU).
    """
    if wanted == "auto":
        return "bf16" if has_fast_bf16() else "fp32"
    if wanted == "fp16" and not torch.cuda.is_available():
        raise UserError("precision = 'fp16': needs a GPU; on a CPU use bf16, fp32 or auto")
    return wanted


def has_fast_bf16() -> bool:
    """Say whether bf16 matrix products run natively here."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return not processor_flags().isdisjoint(("avx512_bf16", "amx_bf16"))
