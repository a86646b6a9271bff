"""The last stage: tokenized documents to shards of rows."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep.engine import Engine, Job
from data_prep.gather import gather
from data_prep.progress import StageProgress
from data_prep.recipe import PrepareRecipe
from data_prep.row_steps import KEEP_FILE, SPLITS, BuildRows, group, read_group
from data_prep.selection import Selection
from data_prep.staging import discard
from data_prep.tokenizer import LoadedTokenizer
from sparse_pretrain.data.manifest import Split, SplitCounts
from sparse_pretrain.files import atomic_path, sha256_json


def build_rows(
    recipe: PrepareRecipe,
    keys: Sequence[str],
    selection: Selection,
    tokenizer: LoadedTokenizer,
    place: Path,
    folder: Path,
    engine: Engine,
    progress: StageProgress,
) -> dict[Split, SplitCounts]:
    """Write the shards of both splits to `folder`.

    Args:
        recipe: its row settings.
        keys: of the sources' tokenized documents.
        selection: which documents stay.
        tokenizer: its special tokens.
        place: the work folder.
        folder: where the shards go.
        engine: what runs the tasks.
        progress: what is told of them.

    Returns:
        What each split holds.
    """
    settings = recipe.model_dump(mode="json", include=ROW_KEYS)
    work = place / f"rows-{sha256_json([VERSION, list(keys), settings])[:16]}"
    with atomic_path(work / KEEP_FILE) as temporary, temporary.open("wb") as handle:
        np.save(handle, selection.keep)
    groups = group(selection.units)
    job = Job("build rows", [BuildRows(recipe, tokenizer.frame, groups, work)], len(groups), work)
    sizes = [sum(unit.tokens for unit in units) for units in groups]
    engine.run(job, progress.stage("rows", sizes, "tokens"))
    counted = [read_group(work, number) for number in range(len(groups))]
    splits = {
        split: gather(recipe, split, [counts[split] for counts in counted], work, folder) for split in SPLITS
    }
    if recipe.work is not None:
        discard(work)  # the shards lie in the output now; only tokens are worth keeping
    return splits


# Raised when the same documents give other rows than before.
VERSION = 3
# What decides rows, once the documents are tokenized.
ROW_KEYS = {
    "format",
    "sequence_length",
    "validation_fraction",
    "seed",
    "drop_duplicates",
    "drop_near_duplicates",
    "pairs",
    "packed",
    "rows_per_shard",
}
