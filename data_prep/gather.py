"""The groups' shards to those of the output: one of a size, numbered through.

A group ends with a shard that is not full. What is in those goes on from one to the next, behind the full ones, so
that only the very last shard of a split is shorter. Where a row stands is of no weight: training draws its own order.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from data_prep.recipe import PrepareRecipe
from data_prep.row_steps import group_folder
from data_prep.shards import shard_at, write_shard
from sparse_pretrain.data.manifest import Shard, Split, SplitCounts
from sparse_pretrain.data.ragged import Ragged
from sparse_pretrain.data.shards import Column, join, map_shard, values_of
from sparse_pretrain.files import atomic_path

Columns = dict[str, Column]


class Place(NamedTuple):
    """A group's shard, and where it lies now."""

    path: Path
    shard: Shard


def gather(
    recipe: PrepareRecipe, split: Split, counts: Sequence[SplitCounts], work: Path, folder: Path
) -> SplitCounts:
    """Bring the groups' shards into the output.

    Args:
        recipe: its rows, and how many a shard has.
        split: which split.
        counts: of each group.
        work: where the groups are; they stay until the output is whole.
        folder: the prepared folder to be.

    Returns:
        What the split holds.
    """
    (folder / split).mkdir(parents=True, exist_ok=True)
    places = [
        Place(group_folder(work, number) / shard.file, shard)
        for number, one in enumerate(counts)
        for shard in one.shards
    ]
    full = [place for place in places if place.shard.rows == recipe.rows_per_shard]
    rests = [place for place in places if place.shard.rows < recipe.rows_per_shard]
    if len(rests) == 1:
        full, rests = [*full, *rests], []
    shards: list[Shard] = []
    for place in full:
        name = f"{split}/shard-{len(shards):05d}.arrow"
        link(place.path, folder / name)
        shards.append(place.shard.model_copy(update={"file": name}))
    for columns in refill(rests, recipe):
        path = folder / split / f"shard-{len(shards):05d}.arrow"
        write_shard(path, values_of(columns.pop("input_ids")), columns)
        shards.append(shard_at(path, folder, rows=len(columns["length"])))
    return SplitCounts(
        documents=sum(one.documents for one in counts),
        rows=sum(one.rows for one in counts),
        tokens=sum(one.tokens for one in counts),
        shards=shards,
    )


def refill(rests: Sequence[Place], recipe: PrepareRecipe) -> Iterator[Columns]:
    """Yield the rows of the files in their order, `rows_per_shard` at a time; holds no more than those."""
    parts: list[Columns] = []
    missing = recipe.rows_per_shard
    for place in rests:
        columns = map_shard(place.path, recipe.sequence_length, recipe.format)
        at = 0
        while at < place.shard.rows:
            part = {name: part_of(column, at, at + missing) for name, column in columns.items()}
            taken = len(part["length"])
            parts.append(part)
            at += taken
            missing -= taken
            if not missing:
                yield joined(parts)
                parts, missing = [], recipe.rows_per_shard
    if parts:
        yield joined(parts)


def part_of(column: Column, start: int, stop: int) -> Column:
    """Return the rows from `start` up to `stop`, as far as there are any."""
    return column.part(start, stop) if isinstance(column, Ragged) else column[start:stop]


def joined(parts: Sequence[Columns]) -> Columns:
    """Return columns one after the other, in the order that shards have."""
    names = [name for name in parts[0] if name != "input_ids"]
    return {name: join([part[name] for part in parts]) for name in ["input_ids", *names]}


def link(source: Path, target: Path) -> None:
    """Give a file a second name; copy it where that cannot be. The first stays until the output is whole."""
    try:
        os.link(source, target)
    except OSError:
        with atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)
