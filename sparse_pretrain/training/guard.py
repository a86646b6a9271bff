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
        self._loss = 0.0

    def count(self, loss: float, applied: bool) -> None:
        """Take note of one step.

        Args:
            loss: over all ranks.
            applied: False when the engine skipped the update, on all ranks.
        """
        self.skipped += not applied
        self._loss = loss
        self._in_a_row = 0 if applied and math.isfinite(loss) else self._in_a_row + 1

    @property
    def healthy(self) -> bool:
        """Whether the last step had a usable update; only then are weights worth saving."""
        return self._in_a_row == 0

    def check(self, step: int, last_checkpoint: Path | None, last: bool = False) -> None:
        """Stop the run when nothing comes of it any more.

        Args:
            step: steps done.
            last_checkpoint: the newest complete one.
            last: this was the run's last step.

        Raises:
            TrainingDivergedError: as many steps in a row as are allowed had no usable update, or the run ends in
                such steps.
        """
        if self._in_a_row >= self._limit or (last and not self.healthy):
            raise TrainingDivergedError(
                f"step {step}: {self._in_a_row} steps in a row without a usable update (loss {self._loss}; a loss "
                f"or gradient was NaN or infinite); last good checkpoint: {last_checkpoint or 'none yet'}"
            )

    def state_dict(self) -> dict[str, int]:
        """Return both counts: a run that is preempted often must not start counting anew each time."""
        return {"skipped": self.skipped, "in_a_row": self._in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on counting."""
        self.skipped, self._in_a_row = int(state["skipped"]), int(state["in_a_row"])
