"""Whether every rank can write to the run folder, and sees what the others write there."""

import secrets
import time
from contextlib import suppress
from pathlib import Path

from sparse_pretrain.training.world import World

POLL_SECONDS = 0.2


def try_folder(world: World, folder: Path, seconds: float) -> tuple[str | None, tuple[int, ...]]:
    """Write a file on every rank and look for those of the others (collective).

    Args:
        world: all ranks.
        folder: in which to try; made where it is missing.
        seconds: to wait for the others' files to be seen.

    Returns:
        Why this rank cannot write (None when it can), and the ranks whose files it does not see.
    """
    token = world.broadcast(secrets.token_hex(4))
    problem = None
    mine = folder / f".probe-{token}-{world.rank}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mine.write_text(str(world.rank), encoding="utf-8")
    except OSError as error:
        problem = error.strerror or str(error)
    written = [rank for rank, fault in enumerate(world.gather(problem)) if fault is None]
    unseen = wait_for(folder, token, set(written), seconds)
    # Nobody takes its file away before all have looked.
    world.barrier()
    with suppress(OSError):
        mine.unlink(missing_ok=True)
    return problem, tuple(sorted(unseen))


def wait_for(folder: Path, token: str, ranks: set[int], seconds: float) -> set[int]:
    """Return the ranks whose files are not seen in time."""
    deadline = time.monotonic() + seconds
    while True:
        found = set()
        with suppress(OSError):
            found = {int(path.name.rsplit("-", 1)[1]) for path in folder.glob(f".probe-{token}-*")}
        missing = ranks - found
        if not missing or time.monotonic() > deadline:
            return missing
        time.sleep(POLL_SECONDS)
