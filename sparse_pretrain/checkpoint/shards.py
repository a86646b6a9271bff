"""Weights and moments as flat fragments, a safetensors file a rank, readable by any number of ranks.

A tensor `master/NAME` (or `exp_avg/NAME`, `exp_avg_sq/NAME`, …) of a rank's file holds elements
[start, start + length) of the flattened parameter NAME; starts and shapes are in the file's metadata.
Reading an arbitrary range means reading the overlapping fragments, so nothing ties a checkpoint to the
number of ranks, the ZeRO stage or the precision it was saved with.

A fragment with many zeros may be stored without them (`checkpoint.zeros`): then `KIND/NAME` holds the other
values, `nonzero/KIND/NAME` one bit for each value, and its length is in the metadata, too.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sparse_pretrain.checkpoint.integrity import FileFacts
from sparse_pretrain.checkpoint.tensor_file import write_tensors
from sparse_pretrain.checkpoint.zeros import drop_zeros, is_worth_it, restore_zeros
from sparse_pretrain.errors import UserError

MASTER = "master"
FORMAT = "weight-fragments-2"
NONZERO = "nonzero/"
EXTRA = "extra/"


class Piece(NamedTuple):
    """Elements [start, start + len(values)) of a flattened parameter, or of a moment of it.

    Attributes:
        kind: `MASTER`, an optimizer moment's name, or a scorer's.
        name: the parameter's.
        start: index of the first element.
        values: flat.
    """

    kind: str
    name: str
    start: int
    values: Tensor


def write_rank(
    path: Path,
    pieces: Iterable[Piece],
    shapes: Mapping[str, torch.Size],
    extra: Mapping[str, Tensor],
    origin: str = "",
    without_zeros: bool = False,
) -> FileFacts:
    """Write one rank's file and force it to the disk.

    Args:
        path: where.
        pieces: on the CPU; they are not copied.
        shapes: whole shapes of all parameters.
        extra: other tensors of this rank (random-number states), stored under `extra/`.
        origin: what all files of one checkpoint have in common, such as run and step; a reader refuses a mixture.
        without_zeros: leave zeros out where that is worth it.

    Returns:
        Its size and checksum.

    Raises:
        OSError: the disk refused.
    """
    tensors: dict[str, Tensor] = {}
    starts: dict[str, int] = {}
    lengths: dict[str, int] = {}
    for kind, name, start, live in pieces:
        key, values = f"{kind}/{name}", live.detach()
        starts[key] = start
        if without_zeros and is_worth_it(values):
            lengths[key] = values.numel()
            tensors[NONZERO + key], tensors[key] = drop_zeros(values)
        else:
            tensors[key] = values.contiguous()
    tensors.update({EXTRA + name: tensor.cpu().contiguous() for name, tensor in extra.items()})
    metadata = {
        "format": FORMAT,
        "origin": origin,
        "starts": json.dumps(starts),
        "lengths": json.dumps(lengths),
        "shapes": json.dumps({name: list(shape) for name, shape in shapes.items()}),
    }
    return write_tensors(path, tensors, metadata)


class _Stored(NamedTuple):
    """Where a fragment lies."""

    start: int
    length: int
    file: int
    without_zeros: bool


class Header(NamedTuple):
    """What a shard says of itself.

    Attributes:
        origin: run and step that it belongs to.
        shapes: whole shapes of all parameters, also of those that this rank has nothing of.
        fragments: of each fragment, by `kind/parameter`: its first element in the flattened parameter, its length,
            and whether it is stored without its zeros.
        extras: names of the rank's other tensors (random-number states).
    """

    origin: str
    shapes: dict[str, torch.Size]
    fragments: dict[str, tuple[int, int, bool]]
    extras: frozenset[str]


def open_shard(path: Path) -> tuple[Any, Header]:
    """Open a rank's file (memory-mapped; no value is read) and return it with what it says of itself.

    Raises:
        UserError: it is not one of our shards, or truncated.
    """
    try:
        file = safe_open(os.fspath(path), framework="pt").__enter__()
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise ValueError(f"its format is {metadata.get('format')}, this program reads {FORMAT}")
        starts: dict[str, int] = json.loads(metadata["starts"])
        lengths: dict[str, int] = json.loads(metadata["lengths"])
        header = Header(
            metadata["origin"],
            {name: torch.Size(shape) for name, shape in json.loads(metadata["shapes"]).items()},
            {
                key: (
                    start,
                    lengths[key] if key in lengths else file.get_slice(key).get_shape()[0],
                    key in lengths,
                )
                for key, start in starts.items()
            },
            frozenset(key.removeprefix(EXTRA) for key in file.keys() if key.startswith(EXTRA)),  # noqa: SIM118 - not a mapping
        )
    except (SafetensorError, LookupError, AttributeError, TypeError, ValueError, OSError) as error:
        raise UserError(f"{path}: not a shard of a checkpoint ({error})") from None
    return file, header


class FragmentReader:
    """Random access to the parameters that the ranks of a checkpoint wrote together."""

    def __init__(self, files: Iterable[Path]) -> None:
        """Open all files (memory-mapped; nothing is read yet).

        Raises:
            UserError: a file is not one of ours, or of another checkpoint than the others.
        """
        self.shapes: dict[str, torch.Size] = {}
        self._pieces: dict[str, list[_Stored]] = {}
        self._files: list[Any] = []
        origin: str | None = None
        for path in files:
            file, header = open_shard(path)
            if origin not in (None, header.origin):
                raise UserError(
                    f"{path}: belongs to {header.origin}, the shards before it to {origin}; they cannot be mixed"
                )
            origin = header.origin
            self.shapes.update(header.shapes)
            for key, (start, length, packed) in header.fragments.items():
                self._pieces.setdefault(key, []).append(_Stored(start, length, len(self._files), packed))
            self._files.append(file)

    def kinds(self, name: str) -> list[str]:
        """Return the kinds of fragments that there are of a parameter, sorted."""
        return sorted(key.removesuffix(f"/{name}") for key in self._pieces if key.endswith(f"/{name}"))

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
        # In order, and from where the one before ended: what two ranks hold is not counted twice.
        for piece in sorted(self._pieces.get(key, [])):
            first, last = max(start + found, piece.start), min(start + length, piece.start + piece.length)
            if first < last and first == start + found:
                values = self._part(key, piece, first - piece.start, last - first)
                result[first - start : last - start] = values
                found += last - first
        if found != length:
            raise UserError(
                f"checkpoint: {key}: {found} of {length} values from {start} on; a shard is missing"
            )
        return result

    def _part(self, key: str, piece: _Stored, first: int, length: int) -> Tensor:
        file = self._files[piece.file]
        if piece.without_zeros:
            return restore_zeros(file.get_tensor(NONZERO + key), file.get_tensor(key), first, length)
        return file.get_slice(key)[first : first + length]  # type: ignore[no-any-return]

    def whole(self, kind: str, name: str) -> Tensor:
        """Return a whole parameter in its own shape, fp32."""
        shape = self.shapes[name]
        return self.read(kind, name, 0, shape.numel()).reshape(shape)

    def of_rank(self, rank: int) -> dict[str, Tensor]:
        """Return rank `rank`'s other tensors."""
        file = self._files[rank]
        return {
            key.removeprefix(EXTRA): file.get_tensor(key)
            for key in file.keys()  # noqa: SIM118 - not a mapping
            if key.startswith(EXTRA)
        }
