"""Weights and moments as flat fragments, a safetensors file a rank, readable by any number of ranks.

A tensor `master/NAME` (or `exp_avg/NAME`, `exp_avg_sq/NAME`) of a rank's file holds elements
[start, start + length) of the flattened parameter NAME; starts and shapes are in the file's metadata.
Reading an arbitrary range means reading the overlapping fragments, so nothing ties a checkpoint to the
number of ranks, the ZeRO stage or the precision it was saved with.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparse_pretrain.errors import UserError
from sparse_pretrain.files import fsync_file

MASTER = "master"
FORMAT = "weight-fragments-1"


def write_rank(
    path: Path,
    pieces: Iterator[tuple[str, str, int, Tensor]],
    shapes: Mapping[str, torch.Size],
    extra: Mapping[str, Tensor],
) -> None:
    """Write one rank's file and force it to the disk.

    Args:
        path: where.
        pieces: (kind, parameter name, start, flat tensor).
        shapes: whole shapes of all parameters.
        extra: other tensors of this rank (random-number states), stored under `extra/`.
    """
    tensors: dict[str, Tensor] = {}
    starts: dict[str, int] = {}
    for kind, name, start, tensor in pieces:
        tensors[f"{kind}/{name}"] = tensor.detach().cpu().contiguous().clone()
        starts[f"{kind}/{name}"] = start
    tensors.update({f"extra/{name}": tensor.cpu() for name, tensor in extra.items()})
    metadata = {
        "format": FORMAT,
        "starts": json.dumps(starts),
        "shapes": json.dumps({name: list(shape) for name, shape in shapes.items()}),
    }
    save_file(tensors, path, metadata=metadata)
    fsync_file(path)


class FragmentReader:
    """Random access to the parameters that the ranks of a checkpoint wrote together."""

    def __init__(self, files: list[Path]) -> None:
        """Open all files (memory-mapped; nothing is read yet).

        Raises:
            UserError: a file is not one of ours.
        """
        self.shapes: dict[str, torch.Size] = {}
        self._pieces: dict[str, list[tuple[int, int, int]]] = {}
        self._files: list[Any] = []
        for path in files:
            try:
                file = safe_open(os.fspath(path), framework="pt").__enter__()
                metadata = file.metadata() or {}
                starts: dict[str, int] = json.loads(metadata["starts"])
                shapes: dict[str, list[int]] = json.loads(metadata["shapes"])
            except (SafetensorError, KeyError, ValueError, OSError) as error:
                raise UserError(f"{path}: not a shard of a checkpoint ({error})") from None
            self.shapes.update({name: torch.Size(shape) for name, shape in shapes.items()})
            for key, start in starts.items():
                length = file.get_slice(key).get_shape()[0]
                self._pieces.setdefault(key, []).append((start, length, len(self._files)))
            self._files.append(file)

    def has(self, kind: str, name: str) -> bool:
        """Say whether any rank wrote fragments of this kind for a parameter."""
        return f"{kind}/{name}" in self._pieces

    def read(self, kind: str, name: str, start: int, length: int) -> Tensor:
        """Return elements [start, start + length) of a flattened parameter, fp32.

        Raises:
            UserError: no rank wrote some of them.
        """
        key = f"{kind}/{name}"
        result = torch.empty(length, dtype=torch.float32)
        found = 0
        for piece_start, piece_length, number in self._pieces.get(key, []):
            first, last = max(start, piece_start), min(start + length, piece_start + piece_length)
            if first < last:
                part = self._files[number].get_slice(key)[first - piece_start : last - piece_start]
                result[first - start : last - start] = part
                found += last - first
        if found != length:
            raise UserError(
                f"checkpoint: {key}: {found} of {length} values from {start} on; a shard is missing"
            )
        return result

    def whole(self, kind: str, name: str) -> Tensor:
        """Return a whole parameter in its own shape, fp32."""
        shape = self.shapes[name]
        return self.read(kind, name, 0, shape.numel()).reshape(shape)

    def of_rank(self, rank: int) -> dict[str, Tensor]:
        """Return rank `rank`'s other tensors."""
        file = self._files[rank]
        return {
            key.removeprefix("extra/"): file.get_tensor(key)
            for key in file.keys()  # noqa: SIM118 - not a mapping
            if key.startswith("extra/")
        }
