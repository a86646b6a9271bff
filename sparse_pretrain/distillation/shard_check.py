"""Is a shard of stored logits what its manifest says? Answered from its header, without reading the logits."""

from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from sparse_pretrain.distillation.stored_logits import LogitsManifest, columns_of


def shard_problem(path: Path, manifest: LogitsManifest, number: int) -> str | None:
    """Return what is wrong with a shard, or None when sizes, types and offsets are the manifest's.

    Opening compares the header with the size of the file, so a truncated shard is found too.

    Args:
        path: of the shard.
        manifest: of its folder.
        number: of the shard.
    """
    try:
        with safe_open(str(path), framework="np") as file:
            offsets = file.get_tensor("offsets")
            found = {name: described(file.get_slice(name)) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        return " ".join(str(error).split())
    samples = manifest.samples_of(number)
    if offsets.shape != (samples + 1,) or offsets[0] != 0 or (np.diff(offsets) < 0).any():
        return f"its offsets are not those of {samples} samples"
    for name, (kind, shape) in columns_of(manifest, samples, int(offsets[-1])).items():
        if found.get(name) != (kind, shape):
            return f"{name} is {found.get(name, 'missing')}, should be {(kind, shape)}"
    return None


def described(column: object) -> tuple[str, tuple[int, ...]]:
    """Return type (as safetensors names it) and shape of a column, from the header alone."""
    return column.get_dtype(), tuple(column.get_shape())  # type: ignore[attr-defined]
