"""The one piece of state of pruning: a boolean mask per prunable weight, True where the weight is kept."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparse_pretrain.errors import UserError
from sparse_pretrain.files import atomic_path

MASK_FILE = "masks.safetensors"


class Flips(NamedTuple):
    """How one update changed a mask, in weights."""

    pruned: int
    regrown: int


class MaskSet(Mapping[str, Tensor]):
    """Masks by parameter name: bool tensors of the weights' shapes, True = kept.

    Identical on every rank; `digest` is what ranks compare. On disk: one bit a weight.
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        self._masks = {name: masks[name].to(torch.bool) for name in sorted(masks)}

    @classmethod
    def dense(cls, shapes: Mapping[str, torch.Size], device: torch.device | str = "cpu") -> "MaskSet":
        """Return masks that keep every weight."""
        masks = {name: torch.ones(shape, dtype=torch.bool, device=device) for name, shape in shapes.items()}
        return cls(masks)

    @classmethod
    def from_zeros(cls, weights: Mapping[str, Tensor]) -> "MaskSet":
        """Read the masks off weights whose zeros are the masks (released checkpoints without mask files)."""
        return cls({name: weight.detach() != 0 for name, weight in weights.items()})

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def replace(self, name: str, mask: Tensor) -> Flips:
        """Put `mask` in place of the mask of `name`, in place so that gradient hooks see it."""
        current = self._masks[name]
        if mask.shape != current.shape:
            raise ValueError(f"mask of {name}: shape {tuple(mask.shape)}, not {tuple(current.shape)}")
        pruned = int((current & ~mask).sum())
        regrown = int((~current & mask).sum())
        current.copy_(mask)
        return Flips(pruned, regrown)

    def sparsity(self, name: str) -> float:
        """Return the share of pruned weights in one mask, in [0, 1]."""
        mask = self._masks[name]
        return 1.0 - int(mask.sum()) / mask.numel()

    def total_sparsity(self) -> float:
        """Return the share of pruned weights over all masks, in [0, 1]; 0 when there are none."""
        total = sum(mask.numel() for mask in self._masks.values())
        kept = sum(int(mask.sum()) for mask in self._masks.values())
        return 1.0 - kept / total if total else 0.0

    def digest(self) -> str:
        """Return a SHA-256 over names, shapes and bits: equal exactly when the masks are equal."""
        digest = hashlib.sha256()
        for name, mask in self._masks.items():
            digest.update(json.dumps([name, list(mask.shape)]).encode())
            digest.update(pack_bits(mask).numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write the masks at one bit a weight, atomically (safetensors; shapes in the metadata)."""
        packed = {name: pack_bits(mask) for name, mask in self._masks.items()}
        shapes = {name: list(mask.shape) for name, mask in self._masks.items()}
        with atomic_path(path) as temporary:
            save_file(packed, temporary, metadata={"format": "mask-bits-1", "shapes": json.dumps(shapes)})

    @classmethod
    def load(cls, path: Path) -> "MaskSet":
        """Read what `save` wrote.

        Raises:
            UserError: the file is missing, is not a mask file, or holds fewer bits than its shapes say.
        """
        try:
            with safe_open(os.fspath(path), framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != "mask-bits-1":
                    raise UserError(f"{path}: not a mask file (no mask-bits-1 in its metadata)")
                shapes: dict[str, list[int]] = json.loads(metadata["shapes"])
                return cls(
                    {name: unpack_bits(file.get_tensor(name), shape) for name, shape in shapes.items()}
                )
        except FileNotFoundError:
            raise UserError(f"{path}: no such mask file") from None
        except (SafetensorError, ValueError, KeyError) as error:
            raise UserError(f"{path}: broken mask file ({error})") from None


def pack_bits(mask: Tensor) -> Tensor:
    """Pack a bool tensor, row-major, into uint8: bit i of byte j is element 8 j + i."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1), bitorder="little"))


def unpack_bits(packed: Tensor, shape: list[int]) -> Tensor:
    """Undo `pack_bits`.

    Raises:
        ValueError: `packed` has another number of bytes than `shape` needs.
    """
    count = int(np.prod(shape, dtype=np.int64))
    if packed.numel() != -(-count // 8):
        raise ValueError(f"{packed.numel()} bytes of mask for {count} weights")
    bits = np.unpackbits(packed.numpy(), count=count, bitorder="little")
    return torch.from_numpy(bits).to(torch.bool).reshape(shape)
