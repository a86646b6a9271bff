"""Bytes on one rank, by purpose: what grows with parameters as `train --dry-run` counts it, and what comes on top."""

from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.costs.counts import Pass, Shape
from sparse_pretrain.costs.hardware import Device
from sparse_pretrain.training.plan import memory_per_rank

# Of the shipped DeepSpeed configs (ds_configs/): elements of a bucket.
BUCKET = 50_000_000
# stage3_max_live_parameters, which no model here reaches: what was gathered stays until the step ends.
LIVE_PARAMETERS = 1_000_000_000
# What an allocator holds beyond what tensors need (a usual value of torch's on GPUs; assumed).
FRAGMENTATION = 0.05
FP32 = 4


def states(recipe: TrainRecipe, shape: Shape, ranks: int, width: int, stage: int) -> dict[str, int]:
    """Return what grows with parameters, by the very function that `train --dry-run` prints."""
    engine = recipe.engine.model_copy(update={"stage": stage})
    staged = recipe.model_copy(update={"engine": engine})
    parts = memory_per_rank(shape.parameters, shape.prunable, staged, ranks, width)
    return {name: size for name, size in parts.items() if name != "total"}


def activations(shape: Shape, batch: Pass, width: int, kind: str) -> float:
    """Return what the forward pass keeps for the backward pass.

    A layer keeps, in the working precision, 8 hidden states (input, q, k, v, the attention's output, the input of both
    LayerNorms, the output of the first) and the feed-forward layer before and after its activation (Korthikanti et al.
    2022, section 4, with flash attention and without tensor parallelism). A GPU keeps two dropout masks of a byte a
    value; CPUs draw them again but keep the attention's shares before and after dropout.
    """
    hidden = batch.tokens * shape.width
    layer = width * (8.0 * hidden + 2.0 * batch.tokens * shape.inner)
    if kind == "gpu":
        layer += 2 * hidden + 4 * batch.rows * shape.heads * batch.length
    else:
        layer += 2 * width * batch.rows * shape.heads * batch.length**2
    # Embeddings' sum and its LayerNorm; the head's transform at its positions.
    return shape.layers * layer + 3 * width * hidden + 4 * width * batch.logits * shape.width


def logits_workspace(shape: Shape, batch: Pass, width: int, teachers: int) -> float:
    """Return logits, a teacher's beside them, and their gradients (one of each loss; the sum replaces one)."""
    copies = 2 if not teachers else 4
    return copies * width * batch.logits * shape.vocabulary


def communication_buffers(shape: Shape, ranks: int, width: int, stage: int) -> float:
    """Return gradient buckets (two, so that one fills while one is sent) and, at stage 3, gathered parameters."""
    bucket = min(BUCKET, shape.parameters) * width
    if stage == 1:
        return bucket
    if stage == 2 or ranks == 1:
        return 2 * bucket
    return 2 * bucket + min(LIVE_PARAMETERS, shape.parameters) * width


def memory(
    recipe: TrainRecipe,
    shape: Shape,
    batch: Pass,
    device: Device,
    ranks: int,
    width: int,
    stage: int,
    teachers: int,
    passes: int = 1,
) -> dict[str, float]:
    """Return bytes on one rank by purpose, `total` last.

    Logits are gone when most gradients come: with one micro-batch a step, whichever is smaller costs nothing
    (`reused`, negative). With several, sums of gradients wait through the next forward pass.
    """
    parts: dict[str, float] = dict(states(recipe, shape, ranks, width, stage))
    parts["activations"] = activations(shape, batch, width, device.kind)
    parts["logits_workspace"] = logits_workspace(shape, batch, width, teachers)
    parts["communication_buffers"] = communication_buffers(shape, ranks, width, stage)
    if passes == 1:
        later = parts["gradients"] + parts["communication_buffers"]
        parts["reused"] = -min(parts["logits_workspace"], later)
    parts["fragmentation"] = FRAGMENTATION * sum(parts.values())
    parts["framework"] = device.reserved
    if device.kind == "cpu":
        parts["start"] = start_excess(parts, shape)
    return {**parts, "total": sum(parts.values())}


def start_excess(parts: dict[str, float], shape: Shape) -> float:
    """Return by how much the start's peak exceeds training's on a CPU, where freed memory stays with the process.

    At the start there are the fp32 model, a copy of it for the masters, the working copy, the masters.
    """
    before_teacher = parts["working_copy"] + parts["masters_and_moments"] / 3
    start = 2 * FP32 * shape.parameters + before_teacher + parts["framework"]
    return max(0.0, start - sum(parts.values()))
