"""The JSON that DeepSpeed gets: a shipped or own file, completed from the recipe."""

from pathlib import Path
from typing import Any

from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.data.loader import Slice
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import read_json
from sparse_pretrain.shipped import shipped_folder
from sparse_pretrain.training.precision import Resolved

# Said once, in the recipe; a second place would let the two disagree.
OURS = {
    "train_batch_size": "batch.global_size",
    "train_micro_batch_size_per_gpu": "batch.micro_size",
    "gradient_accumulation_steps": "batch (it follows from global_size, micro_size and ranks)",
    "gradient_clipping": "optimizer.gradient_clipping",
    "optimizer": "optimizer",
    "scheduler": "learning_rate",
    "gradient_allreduce_op": "nothing (losses are divided by global counts, so gradients are summed)",
}
PRECISION_SECTIONS = {"bf16": "bf16", "fp16": "fp16"}


def shipped_config(stage: int, precision: Resolved) -> Path:
    """Return the shipped file for a ZeRO stage and precision."""
    return shipped_folder("ds_configs") / f"zero{stage}-{precision}.json"


def deepspeed_config(recipe: TrainRecipe, precision: Resolved, world_size: int) -> dict[str, Any]:
    """Return the complete DeepSpeed config of a run.

    Raises:
        UserError: the file repeats what the recipe says, or contradicts its stage or precision; or the batch
            cannot be shared among the ranks.
    """
    path = recipe.engine.config or shipped_config(recipe.engine.stage, precision)
    config = read_json(path)
    if not isinstance(config, dict):
        raise UserError(f"{path}: a DeepSpeed config is a JSON object")
    for key, place in OURS.items():
        if key in config:
            raise UserError(f"{path}: {key}: set {place} in the recipe instead")
    stage = config.get("zero_optimization", {}).get("stage")
    if stage != recipe.engine.stage:
        raise UserError(
            f"{path}: zero_optimization.stage = {stage}: the recipe says engine.stage = {recipe.engine.stage}"
        )
    if config["zero_optimization"].get("offload_optimizer") or config["zero_optimization"].get(
        "offload_param"
    ):
        raise UserError(
            f"{path}: zero_optimization: offloading is not supported; remove offload_optimizer and offload_param"
        )
    for name, section in PRECISION_SECTIONS.items():
        enabled = bool(config.get(section, {}).get("enabled", False))
        if enabled != (name == precision):
            raise UserError(f"{path}: {section}.enabled = {enabled}: the run's precision is {precision}")
    check_settings_that_break_pruning(path, config)
    part = Slice(recipe.batch.global_size, recipe.batch.micro_size, 0, world_size)
    return {
        **config,
        # No train_batch_size: DeepSpeed insists on micro-batch x accumulation x ranks, and ours may be smaller.
        "train_micro_batch_size_per_gpu": recipe.batch.micro_size,
        "gradient_accumulation_steps": part.accumulation,
        "gradient_clipping": recipe.optimizer.gradient_clipping,
        # A client optimizer (torch AdamW) has one well-defined state that checkpoints can carry anywhere.
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
        # Stage 3 knows means only (`Engine.backward`).
        **({"gradient_allreduce_op": "sum"} if stage < 3 else {}),
        # Summed up in bf16, the small shares of many micro-batches would be rounded away. (At stage 1 DeepSpeed would
        # take another optimizer, whose partitions are not ours.)
        **({"data_types": {"grad_accum_dtype": "fp32"}} if precision == "bf16" and stage > 1 else {}),
    }


def check_settings_that_break_pruning(path: Path, config: dict[str, Any]) -> None:
    """Refuse keys that make DeepSpeed skip checks we rely on, or use an optimizer of another layout.

    Raises:
        UserError: naming the key.
    """
    if config.get("bf16", {}).get("check_grad_overflow", True) is not True:
        raise UserError(
            f"{path}: bf16.check_grad_overflow = false: steps with NaN gradients would be applied; remove it"
        )
    if config.get("data_types", {}).get("grad_accum_dtype") is not None:
        raise UserError(f"{path}: data_types.grad_accum_dtype: is fp32 wherever it matters; remove it")
