"""Waits for a fault's moment in a running start, and lets it strike."""

import random
from dataclasses import dataclass

from tests.chaos import faults
from tests.chaos.disk import have_own_mounts
from tests.chaos.plan import Fault
from tests.chaos.watch import Start, last_step

MEGABYTE = 2**20
# A disk that is nearly full has room for some files of a checkpoint, never for all.
ROOM_LEFT_BYTES = 4 * MEGABYTE
# From the moment in which the manifest is seen to the end of a commit, about.
COMMIT_SECONDS = 0.004


@dataclass(frozen=True)
class Pace:
    """How fast an undisturbed run is.

    Attributes:
        every: steps from save to save.
        start_seconds: from the command to its first step.
        save_seconds: a save, on average.
    """

    every: int
    start_seconds: float
    save_seconds: float

    def steps(self, fault: Fault) -> int:
        """Return how many steps a fault lets pass."""
        return int((fault.saves + fault.fraction) * self.every)


def strike(fault: Fault, start: Start, pace: Pace, generator: random.Random) -> str:
    """Wait for the fault's moment and inject it; return what was done, for people.

    Raises:
        EndedError: the run ended before.
        HangError: the moment never came.
    """
    if fault.stop.startswith("disk"):
        return fill_disk(fault, start, pace)
    if fault.stop == "term-kill":
        return kill_while_stopping(fault, start, pace, generator)
    when = await_aim(fault, start, pace)
    kill = faults.kill_one_rank if fault.stop == "kill-rank" else faults.kill_everything
    return f"{kill(start, generator)} {when} (step {last_step(start.run) or 0})"


def await_aim(fault: Fault, start: Start, pace: Pace) -> str:
    """Wait until a kill is due; return when that is, for people."""
    if fault.aim == "start":
        moment = fault.fraction * pace.start_seconds
        start.until_seconds(moment)
        return f"{moment:.1f} s after the command"
    if fault.aim == "anywhere":
        start.until_trained(pace.steps(fault))
        return "at a random step"
    staging = start.until_saving(fault.saves)
    if fault.aim == "commit":
        start.until_committing(staging)
        start.pause(fault.fraction * COMMIT_SECONDS)
        return f"while {staging} was committed"
    start.pause(fault.fraction * pace.save_seconds)
    return f"{fault.fraction:.0%} into {staging}"


def kill_while_stopping(fault: Fault, start: Start, pace: Pace, generator: random.Random) -> str:
    """Ask the run to stop, and kill it while it saves for the last time."""
    start.until_trained(pace.steps(fault) + 1)
    begun = start.saves_begun()
    start.launcher.terminate()
    start.until("a last save", lambda: bool(start.saves_begun() - begun))
    start.pause(fault.fraction * pace.save_seconds)
    return f"SIGTERM, then {faults.kill_everything(start, generator)} in the last save"


def fill_disk(fault: Fault, start: Start, pace: Pace) -> str:
    """Take the disk's room away, before a save or in the middle of it."""
    before = fault.stop == "disk-before"
    if before:
        start.until_trained(pace.steps(fault))
    else:
        start.until_saving(fault.saves)
        start.pause(fault.fraction * pace.save_seconds)
    when = "before a save" if before else "in the middle of a save"
    if not have_own_mounts():
        size = MEGABYTE + (start.run / "metrics.jsonl").stat().st_size
        faults.limit_files(start, size)
        return f"no file could grow beyond {size / 1e6:.1f} MB {when}"
    # Now and then so full that not even a row of metrics has room.
    left = int(max(0.0, fault.fraction - 0.3) * ROOM_LEFT_BYTES)
    faults.fill_disk(start.run, left)
    return f"filled the disk but for {left / 1e6:.1f} MB {when}"
