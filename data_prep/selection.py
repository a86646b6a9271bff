"""Which documents stay: the first of each text, over all sources in the recipe's order.

Everything here is arrays with a number a document: 10 million documents take some 300 MB, a second or two.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep.arrow import as_numpy
from data_prep.documents import Document, Drop
from data_prep.near_duplicates import near_duplicates
from data_prep.token_files import SAMPLES, read_columns, read_counts, read_documents


class Tally(NamedTuple):
    """What a source gave: counts and samples for the manifest."""

    documents: int
    characters: int
    dropped: dict[str, int]
    faults: dict[str, int]
    samples: dict[str, list[str]]


class Unit(NamedTuple):
    """A unit's documents: its file, how many it holds, of which `first` is the first of all; their tokens."""

    path: Path
    first: int
    documents: int
    tokens: int


class Selection(NamedTuple):
    """The documents of all units, and which of them stay.

    Attributes:
        units: in the recipe's order.
        keep: bool [documents].
        duplicates: by source and reason the first few documents that another one makes superfluous.
        tallies: of each source.
    """

    units: list[Unit]
    keep: NDArray[np.bool_]
    tallies: list[Tally]
    duplicates: list[dict[Drop, list[int]]]


def select(sources: Sequence[Sequence[Path]], drop_duplicates: bool, drop_near_duplicates: bool) -> Selection:
    """Decide which documents stay.

    Args:
        sources: the unit files of each source.
        drop_duplicates: keep the first of each text only.
        drop_near_duplicates: of texts that share most of their words, keep the first only.
    """
    files = [path for paths in sources for path in paths]
    columns = [read_columns(path, "identity", "characters") for path in files]
    counts = [len(column["identity"]) for column in columns]
    starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    identity = joined([column["identity"] for column in columns], np.uint64)
    characters = joined([column["characters"] for column in columns], np.int64)
    keep = np.ones(len(identity), bool)
    reasons: dict[Drop, NDArray[np.bool_]] = {}
    if drop_duplicates:
        reasons[Drop.DUPLICATE] = ~is_first(identity)
        keep &= ~reasons[Drop.DUPLICATE]
    if drop_near_duplicates:
        reasons[Drop.NEAR_DUPLICATE] = near_duplicates(files, keep)
        keep &= ~reasons[Drop.NEAR_DUPLICATE]
    units = [
        Unit(path, int(start), count, count_tokens(path))
        for path, start, count in zip(files, starts, counts, strict=False)
    ]
    tallies = []
    duplicates = []
    at = 0
    for paths in sources:
        rows = slice(int(starts[at]), int(starts[at + len(paths)]))
        at += len(paths)
        duplicates.append(
            {
                reason: (np.flatnonzero(which[rows])[:SAMPLES] + rows.start).tolist()
                for reason, which in reasons.items()
            }
        )
        own_reasons = {reason: int(which[rows].sum()) for reason, which in reasons.items()}
        tallies.append(
            tally(paths, int(keep[rows].sum()), int(characters[rows][keep[rows]].sum()), own_reasons)
        )
    return Selection(units, keep, tallies, duplicates)


def is_first(values: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Tell of each value whether it is the first of its kind."""
    first = np.zeros(len(values), bool)
    first[np.unique(values, return_index=True)[1]] = True
    return first


def joined(columns: list[Any], dtype: type) -> NDArray[Any]:
    """Return Arrow columns as one array."""
    return np.concatenate(
        [np.empty(0, dtype), *(as_numpy(chunk) for column in columns for chunk in column.chunks)]
    )


def count_tokens(path: Path) -> int:
    """Return the tokens of a unit, those of duplicates too."""
    return int(read_counts(path)["tokens"])


def tally(paths: Sequence[Path], documents: int, characters: int, reasons: dict[Drop, int]) -> Tally:
    """Add up what the units of one source say."""
    dropped: Counter[str] = Counter({reason.value: count for reason, count in reasons.items()})
    faults: Counter[str] = Counter()
    samples: dict[str, list[str]] = {}
    for path in paths:
        counts = read_counts(path)
        dropped.update(counts["dropped"])
        faults.update(counts["faults"])
        for reason, texts in counts["samples"].items():
            samples[reason] = (samples.get(reason, []) + texts)[:SAMPLES]
    in_order = {reason.value: dropped[reason.value] for reason in Drop if dropped[reason.value]}
    return Tally(documents, characters, in_order, dict(sorted(faults.items())), samples)


def document_at(units: Sequence[Unit], number: int) -> Document:
    """Return one of all the documents."""
    unit = next(one for one in units if one.first <= number < one.first + one.documents)
    return next(islice(read_documents(unit.path), number - unit.first, None))
