"""The one piece of state of pruning: a mask per prunable weight, True where the weight is kept."""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sparse_pretrain.errors import UserError
from sparse_pretrain.files import atomic_path
from sparse_pretrain.pruning.bits import count_true, multiply, multiply_packed, pack_bits, unpack_bits

MASK_FILE = "masks.safetensors"


class Flips(NamedTuple):
    """How one update changed a mask, in weights."""

    pruned: int
    regrown: int


class MaskSet(Mapping[str, Tensor]):
    """Masks by parameter name: bool tensors of the weights' shapes, True = kept.

    Identical on every rank; `digest` is what ranks compare. In memory one byte a weight, or one bit
    with `packed`; on disk always one bit.
    """

    def __init__(self, masks: Mapping[str, Tensor], packed: bool = False) -> None:
        self.packed = packed
        self.shapes = {name: masks[name].shape for name in sorted(masks)}
        self._stored = {name: self._store(masks[name].to(torch.bool)) for name in self.shapes}
        self._kept = {name: count_true(masks[name].to(torch.bool)) for name in self.shapes}

    @classmethod
    def dense(
        cls, shapes: Mapping[str, torch.Size], device: torch.device | str = "cpu", packed: bool = False
    ) -> "MaskSet":
        """Return masks that keep every weight."""
        masks = {name: torch.ones(shape, dtype=torch.bool, device=device) for name, shape in shapes.items()}
        return cls(masks, packed)

    @classmethod
    def from_zeros(cls, weights: Mapping[str, Tensor]) -> "MaskSet":
        """Read the masks off weights whose zeros are the masks (released checkpoints without mask files)."""
        return cls({name: weight.detach() != 0 for name, weight in weights.items()})

    def __getitem__(self, name: str) -> Tensor:
        """Return one mask; a fresh tensor when masks are packed."""
        stored = self._stored[name]
        if not self.packed:
            return stored
        shape = self.shapes[name]
        return unpack_bits(stored, shape.numel()).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def _store(self, mask: Tensor) -> Tensor:
        return pack_bits(mask) if self.packed else mask.contiguous()

    def multiply(self, name: str, values: Tensor, start: int = 0) -> None:
        """Set pruned weights among `values` to zero, in place.

        Args:
            name: the weight.
            values: its elements from `start` on (flattened row-major), any float type and shape.
            start: index of the first.
        """
        stored = self._stored[name]
        if self.packed:
            multiply_packed(values, stored, start)
        else:
            multiply(values, stored.view(-1)[start : start + values.numel()])

    def part(self, name: str, start: int, length: int) -> Tensor:
        """Return elements [start, start + length) of a flattened mask, bool."""
        stored = self._stored[name]
        if self.packed:
            return unpack_bits(stored, length, start)
        return stored.view(-1)[start : start + length]

    def replace(self, name: str, mask: Tensor) -> Flips:
        """Put `mask` in place of the mask of `name`.

        Raises:
            ValueError: it has another shape.
        """
        current = self[name]
        if mask.shape != current.shape:
            raise ValueError(f"mask of {name}: shape {tuple(mask.shape)}, not {tuple(current.shape)}")
        before, after = self._kept[name], count_true(mask)
        both = count_true(current & mask)
        self._kept[name] = after
        if self.packed:
            self._stored[name] = pack_bits(mask)
        else:
            current.copy_(mask)
        return Flips(pruned=before - both, regrown=after - both)

    def sparsity(self, name: str) -> float:
        """Return the share of pruned weights in one mask, in [0, 1]."""
        return 1.0 - self._kept[name] / self.shapes[name].numel()

    def total_sparsity(self) -> float:
        """Return the share of pruned weights over all masks, in [0, 1]; 0 when there are none."""
        total = sum(shape.numel() for shape in self.shapes.values())
        return 1.0 - sum(self._kept.values()) / total if total else 0.0

    def digest(self) -> str:
        """Return a SHA-256 over names, shapes and bits: equal exactly when the masks are equal."""
        digest = hashlib.sha256()
        for name, stored in self._stored.items():
            digest.update(json.dumps([name, list(self.shapes[name])]).encode())
            digest.update((stored if self.packed else pack_bits(stored)).cpu().numpy().tobytes())
        return digest.hexdigest()

    def packed_copy(self) -> "MaskSet":
        """Return a copy on the CPU at one bit a weight, which later updates do not change."""
        copy = MaskSet({}, packed=True)
        copy.shapes = dict(self.shapes)
        copy._kept = dict(self._kept)
        copy._stored = {
            name: stored.cpu().clone() if self.packed else pack_bits(stored).cpu()
            for name, stored in self._stored.items()
        }
        return copy

    @property
    def memory(self) -> int:
        """Bytes that the masks take on the device."""
        return sum(stored.numel() * stored.element_size() for stored in self._stored.values())

    def save(self, path: Path) -> None:
        """Write the masks at one bit a weight, atomically (safetensors; shapes in the metadata)."""
        packed = {
            name: (stored if self.packed else pack_bits(stored)).cpu()
            for name, stored in self._stored.items()
        }
        shapes = {name: list(shape) for name, shape in self.shapes.items()}
        with atomic_path(path) as temporary:
            # Not `save_file`: a full disk is an OSError here, and an error of the library's own there.
            temporary.write_bytes(save(packed, {"format": "mask-bits-1", "shapes": json.dumps(shapes)}))

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
                return cls({name: _unpack(file.get_tensor(name), shape) for name, shape in shapes.items()})
        except FileNotFoundError:
            raise UserError(f"{path}: no such mask file") from None
        except (SafetensorError, ValueError, KeyError) as error:
            raise UserError(f"{path}: broken mask file ({error})") from None


def _unpack(packed: Tensor, shape: list[int]) -> Tensor:
    count = math.prod(shape)
    if packed.numel() != -(-count // 8):
        raise ValueError(f"{packed.numel()} bytes of mask for {count} weights")
    return unpack_bits(packed, count).reshape(shape)
