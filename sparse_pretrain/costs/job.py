"""A recipe reduced to what costs depend on."""

from dataclasses import dataclass

from transformers import PretrainedConfig

from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.costs.counts import Pass, Shape
from sparse_pretrain.costs.hardware import Device
from sparse_pretrain.data.mix import training_manifest
from sparse_pretrain.errors import UserError
from sparse_pretrain.training.plan import model_without_memory
from sparse_pretrain.training.precision import Resolved
from sparse_pretrain.training.pruning_inputs import find_prunable

USUAL_LENGTH = 512
WIDTHS = {"bf16": 2, "fp16": 2, "fp32": 4}


@dataclass(frozen=True)
class Job:
    """What is trained, whatever it is trained on.

    Attributes:
        recipe: as given.
        shape: of the student.
        teachers: as the student's, one for each teacher that runs in the step.
        length: tokens of a row.
        precision: of the working copy.
    """

    recipe: TrainRecipe
    shape: Shape
    teachers: tuple[Shape, ...]
    length: int
    precision: Resolved

    @property
    def width(self) -> int:
        """Bytes of a number of the working copy."""
        return WIDTHS[self.precision]

    def micro_batch(self, rows: int) -> Pass:
        """Return a micro-batch of full rows."""
        slots = rows * self.length
        predicted = self.recipe.masking.probability * slots
        section = self.recipe.distillation
        everywhere = section is not None and section.needs_all_logits
        return Pass(rows, self.length, predicted, float(slots) if everywhere else predicted)

    @property
    def update_every(self) -> float:
        """Steps from one mask update to the next, over the whole run; infinite without pruning."""
        pruning = self.recipe.pruning
        if pruning is None:
            return float("inf")
        return self.recipe.steps / ((pruning.last_update - pruning.begin) // pruning.frequency + 1)


def job_of(recipe: TrainRecipe, device: Device, length: int | None = None) -> Job:
    """Read a recipe; neither data nor weights need exist.

    Args:
        recipe: what to train.
        device: `auto` precision is the best that it has.
        length: tokens of a row; none: the prepared data's, else 512 or as many as the model has positions.

    Raises:
        UserError: an unknown model, a precision that the device lacks, rows longer than the model's positions.
    """
    precision = resolve(recipe, device)
    manifest = training_manifest(recipe.data)
    model = model_without_memory(recipe, manifest)
    config: PretrainedConfig = model.config
    positions = int(getattr(config, "max_position_embeddings", USUAL_LENGTH))
    tokens = length or (manifest.sequence_length if manifest else min(USUAL_LENGTH, positions))
    if tokens > positions:
        raise UserError(f"--length = {tokens}: the model has {positions} positions")
    pruning = find_prunable(recipe.pruning, model).plan
    weights = list(model.parameters())
    shape = Shape.of(
        config,
        sum(weight.numel() for weight in weights),
        len(weights),
        pruning.weights,
        pruning.matrices,
        hasattr(getattr(model, "cls", None), "seq_relationship"),
    )
    section = recipe.distillation
    count = 0 if section is None or section.precomputed is not None else len(section.teachers)
    return Job(recipe, shape, (shape,) * count, tokens, precision)


def resolve(recipe: TrainRecipe, device: Device) -> Resolved:
    """Return the precision that the recipe gets on a device.

    Raises:
        UserError: the device lacks it.
    """
    wanted = recipe.precision
    if wanted == "auto":
        # As `training.precision`: bf16 where it is native, else fp32.
        return "bf16" if "bf16" in device.flops else "fp32"
    if wanted not in device.flops:
        raise UserError(
            f"precision = {wanted!r}: {device.name} has no rate for it; it has {', '.join(sorted(device.flops))}"
        )
    return wanted
