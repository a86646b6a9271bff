"""Steps that went wrong: counted, and never endless."""

import math
from pathlib import Path


class TrainingDivergedError(RuntimeError):
    """Too many updates in a row were skipped because a loss or gradient was not a number."""


class Guard:
    """Counts skipped updates; the same on every rank, because every rank sees the same loss and norm."""

    def __init__(self, limit: int) -> None:
        """Stop after `limit` bad steps in a row."""
        self.skipped = 0
        self._limit = limit
        self._in_a_row = 0

    def check(self, step: int, loss: float, applied: bool, last_checkpoint: Path | None) -> None:
        """Take note of one step.

        Args:
            step: steps done, this one included.
            loss: over all ranks.
            applied: False when the engine skipped the update, on all ranks.
            last_checkpoint: the newest complete one.

        Raises:
            TrainingDivergedError: this was the last one in a row that is allowed.
        """
        self.skipped += not applied
        self._in_a_row = 0 if applied and math.isfinite(loss) else self._in_a_row + 1
        if self._in_a_row >= self._limit:
            raise TrainingDivergedError(
                f"step {step}: {self._in_a_row} steps in a row without a usable update (loss {loss}; a loss or "
                f"gradient was NaN or infinite); last good checkpoint: {last_checkpoint or 'none yet'}"
            )
