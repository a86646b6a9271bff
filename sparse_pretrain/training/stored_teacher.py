"""The check that stored teacher logits belong to a recipe: its teacher, on its training stream."""

from pathlib import Path

from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.distillation.stored_logits import LogitsManifest, read_logits_manifest
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
    needed = recipe.steps * recipe.batch.global_size
    if needed > manifest.samples:
        raise UserError(
            f"distillation.precomputed = {str(folder)!r}: covers {manifest.samples} samples, steps x "
            f"batch.global_size = {needed}; make them for this recipe: sparse-pretrain teacher-logits RECIPE OUT"
        )
    missing = manifest.missing(folder)
    if missing:
        raise UserError(
            f"distillation.precomputed = {str(folder)!r}: {len(missing)} of {manifest.shards} shards are missing; "
            f"finish them: sparse-pretrain teacher-logits RECIPE {folder}"
        )


def stored_identity(manifest: LogitsManifest, source: str) -> str:
    """Return the identity of the recipe's teacher; training may go on where only its name is known.

    The weights need not be there to train from stored logits: the same name then means the same teacher.
    """
    identity = source_identity(source)
    if identity == source == manifest.teacher and not Path(source).is_dir():
        return manifest.teacher_identity
    return identity
