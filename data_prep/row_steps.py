"""The pipeline from tokenized documents to shards of rows, as a step of datatrove.

The documents that stay are cut, in their order, into groups of whole units with about as many tokens each; a
task builds one group's rows. Groups depend on the documents alone, so any number of workers gives the same rows.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from datatrove.pipeline.base import PipelineStep

from data_prep.documents import split_of
from data_prep.recipe import PrepareRecipe
from data_prep.selection import Unit
from data_prep.split_output import SplitOutput
from data_prep.token_files import read_documents
from data_prep.tokenizer import TokenFrame
from sparse_pretrain.data.manifest import Split, SplitCounts
from sparse_pretrain.files import read_json, write_json

SPLITS: tuple[Split, ...] = get_args(Split)
# Rows of different groups share nothing. Large beside a window of pairs and beside a shard; of little text smaller
# ones, so that every worker has some.
GROUP_TOKENS = 32_000_000
SMALL_GROUP_TOKENS = 3_000_000
GROUPS = 64
KEEP_FILE = "keep.npy"


def group(units: Sequence[Unit]) -> list[list[Unit]]:
    """Return runs of units with about as many tokens each: a function of the documents, not of the workers."""
    share = sum(unit.tokens for unit in units) // GROUPS
    enough = min(GROUP_TOKENS, max(SMALL_GROUP_TOKENS, share))
    groups: list[list[Unit]] = [[]]
    tokens = 0
    for unit in units:
        if tokens >= enough:
            groups.append([])
            tokens = 0
        groups[-1].append(unit)
        tokens += unit.tokens
    return groups


class BuildRows(PipelineStep):
    """Builds the rows of one group: task n the n-th."""

    type = "writer"
    name = "rows"

    def __init__(
        self, recipe: PrepareRecipe, frame: TokenFrame, groups: list[list[Unit]], folder: Path
    ) -> None:
        """Which documents stay is read from `keep.npy` in the folder."""
        super().__init__()
        self.recipe = recipe
        self.frame = frame
        self.groups = groups
        self.folder = folder

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Write shards and their counts; yield nothing."""
        place = group_folder(self.folder, rank)
        outputs = {split: SplitOutput(self.recipe, self.frame, place, split) for split in SPLITS}
        keep = np.load(self.folder / KEEP_FILE, mmap_mode="r")
        for unit in self.groups[rank]:
            kept = keep[unit.first : unit.first + unit.documents].tolist()
            for document, stays in zip(read_documents(unit.path), kept, strict=True):
                if stays:
                    outputs[split_of(document.identity, self.recipe.validation_fraction)].add(document)
        self.stat_update("documents", value=sum(output.documents for output in outputs.values()))
        counts = {split: output.close().model_dump() for split, output in outputs.items()}
        write_json(place / "counts.json", counts)
        yield from ()


def group_folder(folder: Path, number: int) -> Path:
    """Return where a group's shards are."""
    return folder / "groups" / f"{number:05d}"


def read_group(folder: Path, number: int) -> dict[Split, SplitCounts]:
    """Return what a group's task has written."""
    counts = read_json(group_folder(folder, number) / "counts.json")
    return {split: SplitCounts.model_validate(counts[split]) for split in SPLITS}
