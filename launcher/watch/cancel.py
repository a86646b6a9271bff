"""`launch cancel`: ask a run to save and leave, wait until it has, and see that nobody starts it again."""

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from launcher.query import Job, SlurmError, ask, find_job, find_jobs
from launcher.watch.folders import newest_checkpoint, read_submitted
from launcher.watch.ranks import read_ranks
from launcher.watch.reach import signal_here, signal_step
from launcher.watch.render import show_seconds
from launcher.watch.status import jobs_of
from sparse_pretrain.checkpoint.fence import is_alive, read_owner
from sparse_pretrain.checkpoint.layout import CHECKPOINTS
from sparse_pretrain.errors import FailedError

Say = Callable[[str], None]
POLL_SECONDS = 1.0
LINE_SECONDS = 10.0


def cancel(
    run_folder: Path,
    say: Say,
    now: bool = False,
    wait: float = 600.0,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Stop a run: it saves first, and is not requeued.

    Args:
        run_folder: of the run.
        say: takes lines for the user.
        now: kill it instead; what came after the newest checkpoint is lost.
        wait: seconds for the run to save and end.
        environment: for SLURM's commands.

    Raises:
        FailedError: it still runs after `wait` seconds, or SLURM does not answer.
    """
    numbers = jobs_of(read_ranks(run_folder), read_submitted(run_folder))
    try:
        running = stop_jobs(run_folder, numbers, say, now, environment)
        if running is not None:
            wait_until(lambda: not find_job(running.id, environment).runs, run_folder, say, wait)
            say(f"{run_folder}: job {running.id} has ended; {describe_saved(run_folder)}")
            return
    except SlurmError as error:
        raise FailedError(f"{run_folder}: {error}; the run was not stopped for sure") from None
    reached = signal_here(read_ranks(run_folder), run_folder, signal.SIGKILL if now else signal.SIGTERM)
    if not reached:
        elsewhere = sorted({rank.host for rank in read_ranks(run_folder).active if not rank.is_here})
        if elsewhere and not numbers:
            raise FailedError(
                f"{run_folder}: its ranks are on {', '.join(elsewhere)}, and SLURM did not start them; run "
                f"`launch cancel` on one of these machines"
            )
        say(f"{run_folder}: nothing runs; {describe_saved(run_folder)}")
        return
    say(f"{run_folder}: {'killed' if now else 'asked to save and leave'}: {', '.join(reached)}")
    wait_until(lambda: not still_here(run_folder), run_folder, say, wait)
    say(f"{run_folder}: ended; {describe_saved(run_folder)}")


def stop_jobs(
    run_folder: Path, numbers: Sequence[str], say: Say, now: bool, environment: Mapping[str, str] | None
) -> Job | None:
    """Cancel the jobs of a run that wait, ask the one that runs to leave; return that one."""
    jobs = find_jobs(numbers, environment).values()
    # First those that wait: one of a chain would start when the running one ends.
    for job in jobs:
        if job.waits:
            ask(["scancel", job.id], environment=environment)
            say(f"{run_folder}: job {job.id} was waiting, and is cancelled")
    running = next((job for job in jobs if job.runs), None)
    if running is None:
        return None
    # The job's script requeues it when the ranks have saved; SLURM itself does after a node has failed.
    ask(["scontrol", "update", f"JobId={running.id}", "Requeue=0"], environment=environment)
    step = next((rank.job_step for rank in read_ranks(run_folder).active if rank.job_step is not None), None)
    belongs = step is not None and step.split(".")[0] == running.id
    target = step if step is not None and belongs else running.id
    if now:
        # To the step, for to a whole job KILL begins with TERM, and ranks would save.
        signal_step(target, signal.SIGKILL, environment)
        ask(["scancel", running.id], environment=environment)
        say(f"{run_folder}: job {running.id} was killed")
        return running
    signal_step(target, signal.SIGTERM, environment)
    say(f"{run_folder}: job {running.id} was asked to save and leave; it will not be requeued")
    return running


def still_here(run_folder: Path) -> bool:
    """Say whether ranks of a run live on this machine, or its owner does where no rank has written."""
    ranks = read_ranks(run_folder)
    if ranks.arrived:
        # Also those that have said that they end: they may still be at it.
        return any(rank.lives_here for rank in ranks.arrived)
    owner = read_owner(run_folder / CHECKPOINTS)
    return owner is not None and is_alive(owner)


def wait_until(over: Callable[[], bool], run_folder: Path, say: Say, seconds: float) -> None:
    """Wait until a run is over, with a line every ten seconds.

    Raises:
        FailedError: it is not, after `seconds`.
    """
    started = said_last = time.monotonic()
    while not over():
        now = time.monotonic()
        if now - started > seconds:
            raise FailedError(
                f"{run_folder}: still runs after {show_seconds(seconds)}; --now kills it, {describe_saved(run_folder)}"
            )
        if now - said_last >= LINE_SECONDS:
            said_last = now
            ranks = read_ranks(run_folder)
            phases = ", ".join(sorted({str(rank.phase) for rank in ranks.arrived})) or "unheard of"
            say(f"{run_folder}: waiting for {show_seconds(now - started)}, ranks are {phases}")
        time.sleep(POLL_SECONDS)


def describe_saved(run_folder: Path) -> str:
    """Say which checkpoint a run leaves."""
    saved = newest_checkpoint(run_folder)
    if saved is None:
        return "it has no checkpoint"
    return f"newest checkpoint: {saved.name}, {show_seconds(max(0.0, time.time() - saved.written))} old"
