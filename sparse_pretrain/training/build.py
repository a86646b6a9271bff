"""From a recipe to a trainer: every object is made here once, and what a mode changes is which one."""

from collections.abc import Sequence

import torch

from sparse_pretrain.checkpoint.fence import Claim
from sparse_pretrain.checkpoint.layout import CHECKPOINTS
from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.data.batch import Batch
from sparse_pretrain.data.loader import Slice, TrainingLoader, evaluation_batches
from sparse_pretrain.data.order import key_of
from sparse_pretrain.distillation.matching import projection_widths, student_taps, teacher_taps
from sparse_pretrain.distillation.objective import Objective
from sparse_pretrain.distillation.stored_logits import StoredLogits
from sparse_pretrain.distillation.teacher import ReplicatedTeacher
from sparse_pretrain.models.loading import build_model
from sparse_pretrain.models.pretraining import PretrainingModel
from sparse_pretrain.models.projections import build_projections
from sparse_pretrain.pruning.pruner import Pruner
from sparse_pretrain.pruning.scorers.build import build_scorer
from sparse_pretrain.pruning.structures.build import build_structure
from sparse_pretrain.training.callback import Callback
from sparse_pretrain.training.deepspeed_config import deepspeed_config
from sparse_pretrain.training.engine import Engine, ShardedTeacher
from sparse_pretrain.training.heap import keep_freed_memory
from sparse_pretrain.training.inputs import Inputs
from sparse_pretrain.training.precision import DTYPES, Resolved
from sparse_pretrain.training.saver import Saver
from sparse_pretrain.training.teacher_inputs import student_section, teacher_identity, teacher_section
from sparse_pretrain.training.trainer import Teacher, Trainer
from sparse_pretrain.training.world import World


def build_teachers(recipe: TrainRecipe, inputs: Inputs, world: World, precision: Resolved) -> list[Teacher]:
    """Load the teachers where the recipe wants them; never part of the optimizer or of a checkpoint."""
    section = recipe.distillation
    if section is None:
        return []
    if section.precomputed is not None:
        return [StoredLogits(section.precomputed, world.device)]
    teachers: list[Teacher] = []
    for source, config, match in zip(section.teachers, inputs.teacher_configs, inputs.matches, strict=True):
        loaded = build_model(config, teacher_section(source, recipe), next_sentence=False)
        model = PretrainingModel(loaded, teacher_taps(match), compiled=recipe.engine.compile)
        if section.placement == "sharded":
            teachers.append(ShardedTeacher(model, precision, recipe.batch.micro_size))
        else:
            teachers.append(ReplicatedTeacher(model, world.device, DTYPES[precision]))
    return teachers


def build_student(recipe: TrainRecipe, inputs: Inputs) -> PretrainingModel:
    """Return the student with what distillation adds beside it: taps, and projections where widths differ."""
    model = build_model(inputs.config, student_section(recipe), inputs.next_sentence)
    inputs.config.architectures = [type(model).__name__]
    widths = projection_widths(inputs.matches, inputs.config, inputs.teacher_configs)
    projections = build_projections(widths, recipe.seed)
    return PretrainingModel(model, student_taps(inputs.matches), projections, recipe.engine.compile)


def build_pruner(recipe: TrainRecipe, inputs: Inputs, engine: Engine) -> Pruner | None:
    """Build the pruner that the recipe describes, with dense masks; None when it does not prune."""
    if recipe.pruning is None:
        return None
    structure = build_structure(recipe.pruning.structure, inputs.coupled)
    scorer = build_scorer(recipe.pruning.scorer)
    return Pruner(recipe.pruning, inputs.prunable, engine, structure, scorer, recipe.optimizer.weight_decay)


def build_trainer(
    recipe: TrainRecipe,
    inputs: Inputs,
    world: World,
    precision: Resolved,
    callbacks: Sequence[Callback],
    claimed: Claim | None = None,
) -> tuple[Trainer, Saver]:
    """Build everything a run needs, at step 0 (collective); `claimed` when this start has already taken over.

    Raises:
        UserError: weights cannot be loaded, or there are fewer rows than ranks.
    """
    if world.device.type == "cpu":
        keep_freed_memory()
    part = Slice(recipe.batch.global_size, recipe.batch.micro_size, world.rank, world.size)
    settings = deepspeed_config(recipe, precision, world.size)
    # Fresh weights (a new head, a model from scratch) must be the same on every rank …
    torch.manual_seed(recipe.seed)
    engine = Engine(build_student(recipe, inputs), recipe.optimizer, settings)
    teachers = build_teachers(recipe, inputs, world, precision)
    objective = Objective(recipe.distillation, inputs.matches)
    # … dropout must not.
    torch.manual_seed(key_of("dropout", recipe.seed, world.rank) % 2**63)
    pruner = build_pruner(recipe, inputs, engine)
    everywhere = recipe.distillation is not None and recipe.distillation.needs_all_logits
    loader = TrainingLoader(
        inputs.train, part, recipe.masking, inputs.table, recipe.seed, every_real_position=everywhere
    )

    def validation() -> list[Batch]:
        return list(
            evaluation_batches(
                inputs.validation, recipe.evaluation.rows, part, recipe.masking, inputs.table, recipe.seed
            )
        )

    trainer = Trainer(recipe, world, engine, teachers, objective, loader, pruner, validation, callbacks)
    saver = Saver(
        recipe.output / CHECKPOINTS,
        recipe.checkpoint,
        # Of a folder it is a hash of gigabytes: once is enough.
        world.on_first(lambda: teacher_identity(recipe)),
        inputs.tokenizer,
        inputs.config,
        claimed,
    )
    return trainer, saver
