"""What a training step must compute, and what this machine can compute: model FLOPs utilisation."""

import time
from functools import partial

import torch
from transformers import PretrainedConfig

from sparse_pretrain.bench.clock import timed

# Matrix sizes of BERT's feed-forward layers at 2,048 tokens, and how long the best of them is looked for.
CEILING_SHAPES = ((2048, 768, 3072), (2048, 3072, 768), (2048, 1024, 4096), (4096, 1024, 4096))
# A GPU is not full with those.
GPU_SHAPES = ((16384, 1024, 4096), (8192, 8192, 8192))
CEILING_SECONDS = 1.0


def step_flops(config: PretrainedConfig, tokens: int, keys: float, logits: int, teacher: bool) -> float:
    """Return the multiplications and additions of one optimizer step's matrix products.

    Counted as Narayanan et al. 2021 (appendix) do, forward once and backward twice, nothing recomputed; embeddings,
    softmax, LayerNorm and the optimizer are left out, as everywhere.

    Args:
        config: of the student; the teacher is as large.
        tokens: through the encoder.
        keys: tokens that each token attends to.
        logits: positions at which the vocabulary is predicted.
        teacher: whether a teacher runs forward on the same tokens and positions.
    """
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    layer = 2 * tokens * (4 * width**2 + 2 * width * inner) + 4 * tokens * keys * width
    head = 2 * logits * (width**2 + width * config.vocab_size)
    forward = layers * layer + head
    return float(forward * (3 + teacher))


def measure_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """Return the most FLOP/s that torch's matrix product reaches here, with this process's threads."""
    best = 0.0
    shapes = GPU_SHAPES if device.type == "cuda" else CEILING_SHAPES
    for rows, inner, columns in shapes:
        left = torch.randn(rows, inner, device=device).to(dtype)
        right = torch.randn(inner, columns, device=device).to(dtype)
        flops = 2 * rows * inner * columns
        end = time.perf_counter() + CEILING_SECONDS / len(shapes)
        while time.perf_counter() < end:
            best = max(best, flops / timed(device, partial(torch.matmul, left, right)))
    return best
