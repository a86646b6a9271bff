"""Between shards and whole weights: scores go to one rank, verdicts come back to all."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_pretrain.pruning.bits import pack_bits, unpack_bits
from sparse_pretrain.pruning.ranks import Ranks
from sparse_pretrain.pruning.structure import Unit


@dataclass(frozen=True)
class Extents:
    """Which elements of which weight every rank holds.

    Attributes:
        of: start and length by rank and weight; length 0 where a rank holds nothing.
        device: where the weights live.
    """

    of: Sequence[Mapping[str, tuple[int, int]]]
    device: torch.device

    @classmethod
    def gather(
        cls, names: Sequence[str], mine: Mapping[str, tuple[int, int]], ranks: Ranks, device: torch.device
    ) -> "Extents":
        """Tell all ranks what this one holds; a weight that `mine` lacks has length 0 (collective)."""
        table = torch.tensor([mine.get(name, (0, 0)) for name in names], dtype=torch.int64, device=device)
        rows = [part.reshape(-1, 2).tolist() for part in ranks.gather(table.reshape(-1))]
        return cls([dict(zip(names, map(tuple, part), strict=True)) for part in rows], device)


def owners(units: Sequence[Unit], sizes: Mapping[str, int], ranks: int) -> list[int]:
    """Return the rank that judges each unit: the largest first, each to the rank with least to do."""
    weights = [sum(sizes[member] for member in unit.members) for unit in units]
    load = [0] * ranks
    owner = [0] * len(units)
    for index in sorted(range(len(units)), key=lambda index: (-weights[index], index)):
        owner[index] = min(range(ranks), key=lambda rank: (load[rank], rank))
        load[owner[index]] += weights[index]
    return owner


def collect(
    scores: Tensor | None, shape: torch.Size, name: str, extents: Extents, owner: int, ranks: Ranks
) -> Tensor | None:
    """Bring the parts of one weight's scores to its owner.

    Every rank calls for the same weights in the same order. The owner holds one whole weight's scores at
    a time; the others send their own part, and only that.

    Args:
        scores: of this rank's part, float32 [length]; None where it has none.
        shape: of the whole weight.
        name: of the weight.
        extents: who holds what.
        owner: the rank that gets the whole.
        ranks: all of them.

    Returns:
        The scores in the weight's shape on the owner, None elsewhere.
    """
    places = [held[name] for held in extents.of]
    mine = scores if scores is not None else torch.empty(0, dtype=torch.float32, device=extents.device)
    parts = ranks.collect(mine, [length for _, length in places], owner)
    if parts is None:
        return None
    whole = torch.empty(shape.numel(), dtype=torch.float32, device=extents.device)
    for (start, length), part in zip(places, parts, strict=True):
        whole[start : start + length] = part
    return whole.reshape(shape)


@dataclass(frozen=True)
class Piece:
    """This rank's verdict on elements [start, start + len(keep)) of a weight; `keep` is bool, 1-D."""

    weight: int
    start: int
    keep: Tensor


def exchange(
    pieces: Sequence[Piece], shapes: Sequence[torch.Size], ranks: Ranks, device: torch.device
) -> Iterator[Tensor]:
    """Give every rank the whole masks, one bit a weight on the wire (collective).

    Args:
        pieces: this rank's; over all ranks they cover every weight once.
        shapes: of all weights, in the order of `Piece.weight`.
        ranks: all of them.
        device: where masks are wanted.

    Yields:
        bool masks of the weights' shapes, in order.
    """
    headers = torch.tensor(
        [[piece.weight, piece.start, piece.keep.numel()] for piece in pieces],
        dtype=torch.int64,
        device=device,
    )
    bits = [pack_bits(piece.keep) for piece in pieces]
    packed = torch.cat(bits) if bits else torch.empty(0, dtype=torch.uint8, device=device)
    parts: list[list[tuple[int, Tensor, int]]] = [[] for _ in shapes]
    for header, data in zip(ranks.gather(headers.reshape(-1)), ranks.gather(packed), strict=True):
        offset = 0
        for weight, start, length in header.reshape(-1, 3).tolist():
            size = -(-length // 8)
            parts[weight].append((start, data[offset : offset + size], length))
            offset += size
    for shape, held in zip(shapes, parts, strict=True):
        mask = torch.empty(shape.numel(), dtype=torch.bool, device=device)
        for start, data, length in held:
            mask[start : start + length] = unpack_bits(data, length)
        yield mask.reshape(shape)
