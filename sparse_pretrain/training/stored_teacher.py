"""The check that stored teacher logits belong to a recipe: its teacher, on its training stream."""

from pathlib import Path

from sparse_pretrain.checkpoint.layout import CHECKPOINTS, saved_steps
from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.distillation.shard_check import shard_problem
from sparse_pretrain.distillation.stored_logits import LogitsManifest, read_logits_manifest, shard_path
from sparse_pretrain.errors import UserError
from sparse_pretrain.training.teacher_inputs import source_identity


def check_stored_logits(recipe: TrainRecipe, data_fingerprint: str, vocabulary_size: int) -> None:
    """Refuse stored logits that are not those of the recipe's teacher on the recipe's training stream.

    The stream does not depend on the number of ranks or on how it is cut into batches, so logits of
    more samples than the recipe trains on are fine.

    Args:
        recipe: with `distillation.precomputed`.
        data_fingerprint: of the recipe's data.
        vocabulary_size: of the student.

    Raises:
        UserError: naming what differs.
    """
    section = recipe.distillation
    if section is None or section.precomputed is None:
        return
    folder = section.precomputed
    manifest = read_logits_manifest(folder)
    pairs = {
        "data.path's fingerprint": (manifest.data_fingerprint, data_fingerprint),
        "seed": (manifest.seed, recipe.seed),
        "masking": (manifest.masking, recipe.masking.model_dump(mode="json")),
        "distillation.teacher": (manifest.teacher_identity, stored_identity(manifest, section.teachers[0])),
        "distillation.positions": (manifest.positions, section.positions),
        "distillation.temperature": (manifest.temperature, section.temperature),
        "the vocabulary's size": (manifest.vocabulary_size, vocabulary_size),
    }
    for key, (theirs, mine) in pairs.items():
        if theirs != mine:
            raise UserError(
                f"distillation.precomputed = {str(folder)!r}: made with {key} = {theirs}, this recipe has {mine}; "
                "make them for this recipe: sparse-pretrain teacher-logits RECIPE OUT"
            )
    continues = recipe.checkpoint.resume and saved_steps(recipe.output / CHECKPOINTS)
    # A run that continues knows what it needs only when it stands where its checkpoint was saved.
    if not continues:
        check_stored_samples(recipe, 0, 0)


def check_stored_samples(recipe: TrainRecipe, step: int, samples_seen: int) -> None:
    """Refuse stored logits that lack, or have broken, a shard that the rest of the run reads.

    Args:
        recipe: of the run.
        step: optimizer steps done.
        samples_seen: samples of the stream that they used; another batch size makes it no multiple of `step`.

    Raises:
        UserError: the logits end too early, or a shard is missing or broken.
    """
    section = recipe.distillation
    if section is None or section.precomputed is None or step >= recipe.steps:
        return
    folder = section.precomputed
    manifest = read_logits_manifest(folder)
    needed = samples_seen + (recipe.steps - step) * recipe.batch.global_size
    if needed > manifest.samples:
        raise UserError(
            f"distillation.precomputed = {str(folder)!r}: covers {manifest.samples} samples, steps x "
            f"batch.global_size = {needed}; make them for this recipe: sparse-pretrain teacher-logits RECIPE OUT"
        )
    missing = manifest.missing(folder)
    size = manifest.samples_per_shard
    numbers = range(samples_seen // size, -(-needed // size))
    if not set(numbers).isdisjoint(missing):
        raise UserError(
            f"distillation.precomputed = {str(folder)!r}: {len(missing)} of {manifest.shards} shards are missing; "
            f"finish them: sparse-pretrain teacher-logits RECIPE {folder}"
        )
    for number in numbers:
        path = shard_path(folder, number)
        problem = shard_problem(path, manifest, number)
        if problem is not None:
            raise UserError(
                f"distillation.precomputed: {path} is broken ({problem}); delete it and run again: "
                f"sparse-pretrain teacher-logits RECIPE {folder}"
            )


def stored_identity(manifest: LogitsManifest, source: str) -> str:
    """Return the identity of the recipe's teacher; training may go on where only its name is known.

    The weights need not be there to train from stored logits: the same name then means the same teacher.
    """
    identity = source_identity(source)
    if identity == source == manifest.teacher and not Path(source).is_dir():
        return manifest.teacher_identity
    return identity
