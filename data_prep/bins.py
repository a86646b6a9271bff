"""Bin packing: items into as few rows as possible (best-fit decreasing; Ding et al. 2024, arXiv 2404.10830)."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import NamedTuple


class Bin(NamedTuple):
    """Items that share a row, by their numbers, and the slots that they leave."""

    items: list[int]
    room: int


def best_fit(sizes: Sequence[int], capacity: int) -> list[Bin]:
    """Put items, the largest first, each into the bin that it leaves the least room in; the fullest bins first.

    Args:
        sizes: slots that each item takes, none more than `capacity`.
        capacity: slots of a bin.
    """
    by_room: dict[int, list[list[int]]] = {}
    rooms: list[int] = []
    for item in sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True):
        size = sizes[item]
        place = bisect_left(rooms, size)
        if place < len(rooms):
            room = rooms[place]
            held = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[place]
        else:
            room, held = capacity, []
        held.append(item)
        left = room - size
        if left not in by_room:
            by_room[left] = []
            insort(rooms, left)
        by_room[left].append(held)
    return [Bin(held, room) for room in rooms for held in by_room[room]]


def divide(bins: list[Bin], capacity: int, least_fill: float) -> tuple[list[Bin], list[Bin]]:
    """Return (bins that stay, the emptiest ones, whose items must be broken for all to be full enough).

    Args:
        bins: the fullest first.
        capacity: slots of a bin.
        least_fill: share of all bins' slots that must be taken, in [0, 1].
    """
    sizes = [capacity - one.room for one in bins]
    total = sum(sizes)
    again = 0
    for kept in range(len(bins), -1, -1):
        rows = kept + -(-again // capacity)
        if not rows or total >= least_fill * rows * capacity or not kept:
            return bins[:kept], bins[kept:]
        again += sizes[kept - 1]
    return [], bins
