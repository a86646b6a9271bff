"""From a recipe to a trainer: every object is made here once, and what a mode changes is which one."""

from collections.abc import Sequence

import torch

from sparse_pretrain.checkpoint.store import CHECKPOINTS
from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.data.batch import Batch
from sparse_pretrain.data.loader import Slice, TrainingLoader, evaluation_batches
from sparse_pretrain.data.order import key_of
from sparse_pretrain.models.loading import build_model
from sparse_pretrain.models.pretraining import Predictions, PretrainingModel, arguments
from sparse_pretrain.pruning.pruner import Pruner
from sparse_pretrain.pruning.scorers.build import build_scorer
from sparse_pretrain.pruning.structures.build import build_structure
from sparse_pretrain.training.callback import Callback
from sparse_pretrain.training.deepspeed_config import deepspeed_config
from sparse_pretrain.training.engine import Engine, ShardedTeacher
from sparse_pretrain.training.inputs import Inputs, teacher_identity, teacher_section
from sparse_pretrain.training.precision import DTYPES, Resolved
from sparse_pretrain.training.snapshot import Snapshots
from sparse_pretrain.training.trainer import Teacher, Trainer
from sparse_pretrain.training.world import World


class ReplicatedTeacher:
    """A frozen model, whole on every rank, in the run's precision."""

    def __init__(self, model: PretrainingModel, device: torch.device, precision: Resolved) -> None:
        self._model = model.to(device=device, dtype=DTYPES[precision]).requires_grad_(False).eval()

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Predictions:
        """Run the teacher without gradient."""
        return self._model(*arguments(batch))  # type: ignore[no-any-return]


def build_teacher(recipe: TrainRecipe, inputs: Inputs, world: World, precision: Resolved) -> Teacher | None:
    """Load the teacher where the recipe wants it; never part of the optimizer or of a checkpoint."""
    if recipe.distillation is None or inputs.teacher_config is None:
        return None
    section = teacher_section(recipe.distillation, recipe.model.attention)
    model = PretrainingModel(build_model(inputs.teacher_config, section, next_sentence=False))
    if recipe.distillation.placement == "sharded":
        return ShardedTeacher(model, precision, recipe.batch.micro_size)
    return ReplicatedTeacher(model, world.device, precision)


def build_pruner(recipe: TrainRecipe, inputs: Inputs, engine: Engine) -> Pruner | None:
    """Build the pruner that the recipe describes, with dense masks; None when it does not prune."""
    if recipe.pruning is None:
        return None
    structure = build_structure(recipe.pruning.structure, inputs.coupled)
    scorer = build_scorer(recipe.pruning.scorer)
    return Pruner(recipe.pruning, inputs.prunable, engine, structure, scorer, recipe.optimizer.weight_decay)


def build_trainer(
    recipe: TrainRecipe, inputs: Inputs, world: World, precision: Resolved, callbacks: Sequence[Callback]
) -> tuple[Trainer, Snapshots]:
    """Build everything a run needs, at step 0 (collective).

    Raises:
        UserError: weights cannot be loaded, or the batch does not divide among the ranks.
    """
    part = Slice(recipe.batch.global_size, recipe.batch.micro_size, world.rank, world.size)
    settings = deepspeed_config(recipe, precision, world.size)
    # Fresh weights (a new head, a model from scratch) must be the same on every rank …
    torch.manual_seed(recipe.seed)
    student = build_model(inputs.config, recipe.model, inputs.next_sentence)
    inputs.config.architectures = [type(student).__name__]
    engine = Engine(PretrainingModel(student), recipe.optimizer, settings)
    teacher = build_teacher(recipe, inputs, world, precision)
    # … dropout must not.
    torch.manual_seed(key_of("dropout", recipe.seed, world.rank) % 2**63)
    pruner = build_pruner(recipe, inputs, engine)
    loader = TrainingLoader(
        inputs.train, part, recipe.masking, inputs.table, recipe.seed, every_real_position=teacher is not None
    )

    def validation() -> list[Batch]:
        return list(
            evaluation_batches(
                inputs.validation, recipe.evaluation.rows, part, recipe.masking, inputs.table, recipe.seed
            )
        )

    trainer = Trainer(recipe, world, engine, teacher, loader, pruner, validation, callbacks)
    snapshots = Snapshots(
        recipe.output / CHECKPOINTS, teacher_identity(recipe), inputs.tokenizer, inputs.config
    )
    return trainer, snapshots
