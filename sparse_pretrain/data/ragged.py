"""A list of numbers for each row, as Arrow keeps it: all values in one array, and where each row's end."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Ragged(NamedTuple):
    """Lists of numbers, one a row.

    Attributes:
        offsets: int [rows + 1], not falling; row r has `values[offsets[r]:offsets[r + 1]]`.
        values: of all rows, one after the other; before and behind them may stand others'.
    """

    offsets: NDArray[np.integer[Any]]
    values: NDArray[Any]

    @property
    def counts(self) -> NDArray[np.int64]:
        """Values of each row, int64 [rows]."""
        return np.diff(self.offsets).astype(np.int64)

    @property
    def flat(self) -> NDArray[Any]:
        """All rows' values and nothing else."""
        return self.values[self.offsets[0] : self.offsets[-1]]

    def row(self, number: int) -> NDArray[Any]:
        """Return the values of one row."""
        return self.values[self.offsets[number] : self.offsets[number + 1]]

    def part(self, start: int, stop: int) -> "Ragged":
        """Return the rows from `start` up to `stop`, without a copy."""
        return Ragged(self.offsets[start : stop + 1], self.values)

    def take(self, rows: NDArray[np.integer[Any]]) -> "Ragged":
        """Copy the given rows, in the given order."""
        counts = self.counts[rows]
        ends = np.cumsum(counts)
        # Of every value: how far it is from its row's first one, and where that one stands.
        within = np.arange(counts.sum()) - np.repeat(ends - counts, counts)
        places = np.repeat(self.offsets[rows].astype(np.int64), counts) + within
        return Ragged(np.concatenate([[0], ends]), self.values[places])


def joined(parts: Sequence[Ragged]) -> Ragged:
    """Return rows one after the other, copied."""
    counts = np.concatenate([part.counts for part in parts])
    return Ragged(np.concatenate([[0], np.cumsum(counts)]), np.concatenate([part.flat for part in parts]))
