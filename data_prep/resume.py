"""What to do about an output that exists: nothing when it is what the recipe asks for, else refuse."""

from pathlib import Path
from typing import Any

from data_prep.recipe import PrepareRecipe
from sparse_pretrain.data.manifest import MANIFEST_FILE, Manifest, read_manifest
from sparse_pretrain.errors import UserError


def finished_before(recipe: PrepareRecipe, source_hashes: list[str], tokenizer_hash: str) -> Manifest | None:
    """Return the manifest of an output that this recipe made before from the same inputs; None to build it.

    Raises:
        UserError: the output holds something else and the recipe does not say `overwrite`, or something
            that is no prepared folder, which is never overwritten.
    """
    output = recipe.output
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    if not (output / MANIFEST_FILE).is_file():
        raise UserError(f"output = {output}: exists and is not a prepared folder; choose another")
    try:
        manifest = read_manifest(output)
        reasons = differences(manifest, recipe.row_settings(), source_hashes, tokenizer_hash)
        reasons += damage(output, manifest)
    except UserError as error:
        reasons = [str(error)]
    if not reasons:
        return manifest
    if recipe.overwrite:
        return None
    raise UserError(
        f"output = {output}: already holds other prepared data ({'; '.join(reasons)}); "
        "choose another folder or pass overwrite=true"
    )


def differences(
    manifest: Manifest, settings: dict[str, Any], source_hashes: list[str], tokenizer_hash: str
) -> list[str]:
    """Return what of a manifest does not fit the recipe and its inputs, a phrase each."""
    reasons = [
        f"{key} was {shorten(manifest.settings.get(key))}, is {shorten(settings.get(key))}"
        for key in sorted(settings.keys() | manifest.settings.keys())
        if settings.get(key) != manifest.settings.get(key)
    ]
    if not reasons and [source.sha256 for source in manifest.sources] != source_hashes:
        reasons.append("the sources' content changed")
    if not reasons and manifest.tokenizer_sha256 != tokenizer_hash:
        reasons.append("the tokenizer changed")
    return reasons


def damage(folder: Path, manifest: Manifest) -> list[str]:
    """Return the shards whose size is not the manifest's; `data inspect` compares the bytes too."""
    shards = [shard for counts in manifest.splits.values() for shard in counts.shards]
    return [
        f"{shard.file} is missing or cut off"
        for shard in shards
        if not (folder / shard.file).is_file() or (folder / shard.file).stat().st_size != shard.bytes
    ]


def shorten(value: Any) -> str:
    """Return a setting's value where it is short enough for a one-line message."""
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
