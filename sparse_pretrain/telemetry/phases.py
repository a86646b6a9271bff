"""What a rank may be doing, and where it says so; nothing heavy is imported, for whoever only looks."""

from enum import StrEnum
from pathlib import Path

PROGRESS = "progress"
# Seconds between two writes of a rank.
EVERY_SECONDS = 5.0


class Phase(StrEnum):
    """What a rank is doing; the last three are final."""

    STARTING = "starting"
    TRAINING = "training"
    SAVING = "saving"
    EVALUATING = "evaluating"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def is_final(self) -> bool:
        """Whether the rank has ended."""
        return self in (Phase.FINISHED, Phase.STOPPED, Phase.FAILED)


def progress_path(run_folder: Path, rank: int) -> Path:
    """Return where a rank's progress lies."""
    return run_folder / PROGRESS / f"rank-{rank}.json"
