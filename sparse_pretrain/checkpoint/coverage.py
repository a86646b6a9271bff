"""Do the fragments of all ranks make up whole parameters? Read off the shards' headers, without their values."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparse_pretrain.checkpoint.shards import open_shard

# A fragment's place in the flattened parameter: first element, first element behind it.
Span = tuple[int, int]


@dataclass(frozen=True)
class ShardIndex:
    """What one rank's file holds.

    Attributes:
        path: the file.
        origin: run and step that it belongs to.
        shapes: whole shapes of all parameters, also of those that this rank has nothing of.
        spans: place of each fragment, by (kind, parameter).
        extras: names of the rank's other tensors (random-number states).
    """

    path: Path
    origin: str
    shapes: dict[str, list[int]]
    spans: dict[tuple[str, str], Span]
    extras: frozenset[str]


def read_index(path: Path) -> ShardIndex:
    """Read a shard's header.

    Raises:
        UserError: it is not one of our shards, or truncated.
    """
    _, header = open_shard(path)
    spans = {}
    for key, (start, length, _) in header.fragments.items():
        kind, _, name = key.partition("/")
        spans[kind, name] = (start, start + length)
    shapes = {name: list(shape) for name, shape in header.shapes.items()}
    return ShardIndex(path, header.origin, shapes, spans, header.extras)


def problem_with_spans(spans: Iterable[Span], total: int) -> str | None:
    """Return where spans do not cover [0, total) exactly once, or None when they do."""
    covered = 0
    for start, end in sorted(span for span in spans if span[0] < span[1]):
        if start > covered:
            return f"no rank has elements {covered:,} to {start - 1:,}"
        if start < covered:
            return f"two ranks have elements {start:,} to {min(covered, end) - 1:,}"
        covered = end
    if covered < total:
        return f"no rank has elements {covered:,} to {total - 1:,}"
    if covered > total:
        return f"there are elements up to {covered - 1:,}, the parameter has {total:,}"
    return None


def by_parameter(shards: Sequence[ShardIndex]) -> dict[tuple[str, str], list[Span]]:
    """Return all ranks' spans by (kind, parameter)."""
    spans: dict[tuple[str, str], list[Span]] = {}
    for shard in shards:
        for key, span in shard.spans.items():
            spans.setdefault(key, []).append(span)
    return spans
