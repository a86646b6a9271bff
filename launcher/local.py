"""Ranks as plain processes on this machine: started together, stopped together, none left behind."""

import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.binding import is_placed_by_user, plan_binding
from launcher.environment import Machine, find_machine, free_port, shared_environment
from launcher.rank import Rank, start_rank
from launcher.signals import FORWARDED, STOPPING, Inbox, noted_signals
from sparse_pretrain.checkpoint.fence import read_owner
from sparse_pretrain.checkpoint.layout import CHECKPOINTS
from sparse_pretrain.errors import UserError
from sparse_pretrain.training.signals import STOPPED_EXIT_CODE

POLL_SECONDS = 0.05
USER_MISTAKE = 2
# A rank that stopped to be continued later has saved: the others are about to end as well.
GOOD_ENDS = (0, STOPPED_EXIT_CODE)
# How long rank 0 may take to print the same mistake that another rank has already left for.
MISTAKE_SECONDS = 10.0
# The second request to stop makes ranks hurry, the third kills them. One that comes sooner than this is the
# same request twice: `kill -TERM -group` reaches us directly and through make or timeout.
AGAIN_SECONDS = 2.0
REQUESTS = 3
# Other signals kill a rank only as a consequence: NCCL and gloo abort (SIGABRT) when another rank is gone.
CAUSES = (-signal.SIGKILL, -signal.SIGSEGV, -signal.SIGBUS)
TAIL_LINES = 10


def launch_local(arguments: Sequence[str], nproc: int, run_folder: Path, *, bind: bool = True) -> int:
    """Run `sparse-pretrain ARGUMENTS` (such as `train recipe.yaml`) as `nproc` ranks on this machine.

    See `launch_ranks`; the ranks use this process's Python.
    """
    return launch_ranks([sys.executable, "-m", "sparse_pretrain", *arguments], nproc, run_folder, bind=bind)


def launch_ranks(
    command: Sequence[str],
    nproc: int,
    run_folder: Path,
    *,
    grace: float = 10.0,
    machine: Machine | None = None,
    environment: Mapping[str, str] | None = None,
    bind: bool = True,
) -> int:
    """Run `command` as `nproc` ranks on this machine and wait for them.

    Rank 0 prints to this terminal, rank N to `run_folder/logs/rank-N.log`. When a rank fails, the others
    get SIGTERM and, after `grace` seconds, SIGKILL. SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 are passed on to
    every rank: the first makes them save and leave, a second one, two seconds later or more, makes them hurry,
    and a third SIGINT or SIGTERM kills them. Call it from the main thread.

    Args:
        command: the whole command line of a rank, the Python interpreter first.
        nproc: number of ranks, at least 1.
        run_folder: the run's folder; made when missing.
        grace: seconds that ranks have to end after another one failed.
        machine: cores and GPUs (default: what is here).
        environment: what ranks inherit (default: this process's environment).
        bind: give each rank cores of its own, unless the user places threads (`OMP_PROC_BIND` and the like) or
            there are fewer cores than ranks. Cores that this process may not use (`taskset`) stay unused.

    Returns:
        0 when finished, `STOPPED_EXIT_CODE` when ranks stopped early and saved, or else the exit code of
        the rank that failed first (128 + N when signal N killed it). 2 is a user's mistake: its message is
        shown once, and files made only to log it are taken back.

    Raises:
        UserError: ranks and GPUs don't fit, an impossible number or program.
    """
    if nproc < 1:
        raise UserError(f"nproc = {nproc}: must be at least 1")
    base = os.environ if environment is None else environment
    here = machine or find_machine(base)
    bind = bind and not is_placed_by_user(base)
    binding = plan_binding(here.layout, nproc, here.gpu_nodes) if bind else ()
    shared = shared_environment(base, nproc, free_port(), here, Path(sys.executable), binding)
    with noted_signals() as inbox:
        ranks: list[Rank] = []
        try:
            for number in range(nproc):
                cores = binding[number] if binding else frozenset()
                ranks.append(start_rank(command, number, shared, run_folder, cores))
            return watch(ranks, inbox, grace, run_folder)
        finally:
            for rank in ranks:
                rank.kill()


def watch(ranks: Sequence[Rank], inbox: Inbox, grace: float, run_folder: Path) -> int:
    """Pass signals on until every rank has ended or one has failed; return the run's exit code."""
    started = time.monotonic()
    requests: list[float] = []
    while any(rank.code is None for rank in ranks):
        now = time.monotonic()
        for number in inbox.take():
            if number in STOPPING and (not requests or now - requests[-1] > AGAIN_SECONDS):
                requests.append(now)
                if len(requests) == REQUESTS:
                    say(f"{number.name} for the third time: killing the ranks")
                    return 128 + number
                if len(requests) > 1:
                    say(f"{number.name} again: hurrying; once more kills the ranks")
            for rank in ranks:
                rank.send(FORWARDED[number])
        for rank in ranks:
            rank.look()
        failed = first_failure(ranks)
        if failed is not None:
            end_others(failed, ranks, grace)
            if failed.code == USER_MISTAKE:
                # Behind the start it is a full disk, say: rank 0 has said so, and the logs stay.
                if not has_begun(ranks[0], run_folder):
                    take_mistake_back(failed, ranks)
            elif not requests:
                say(failure_message(failed, len(ranks), now - started))
            return exit_code(failed)
        time.sleep(POLL_SECONDS)
    return max(rank.code or 0 for rank in ranks)


def first_failure(ranks: Sequence[Rank]) -> Rank | None:
    """Return the rank to blame among those that failed, or None.

    When several failed between two looks, one that was killed is the cause, because the others lost their
    connection to it; a user's mistake comes next, then the lowest rank.
    """
    failed = [rank for rank in ranks if rank.code not in (None, *GOOD_ENDS)]
    return min(failed, key=lambda rank: (rank.code not in CAUSES, rank.code != USER_MISTAKE), default=None)


def end_others(failed: Rank, ranks: Sequence[Rank], grace: float) -> None:
    """End every rank after one has failed: SIGTERM, `grace` seconds, SIGKILL."""
    if failed.code == USER_MISTAKE:
        wait_for(ranks[:1], MISTAKE_SECONDS)
    for rank in ranks:
        rank.send(signal.SIGTERM)
    wait_for(ranks, grace)
    for rank in ranks:
        rank.kill()


def take_mistake_back(failed: Rank, ranks: Sequence[Rank]) -> None:
    """Show a user's mistake once and remove the logs that were made to catch it."""
    if ranks[0].code != USER_MISTAKE:  # else rank 0 has shown it on the terminal
        lines = failed.log.tail(TAIL_LINES)
        say("\n".join(lines) or f"rank {failed.number} ended with exit code {USER_MISTAKE} without a message")
    for rank in reversed(ranks):
        rank.log.forget()


def has_begun(first: Rank, run_folder: Path) -> bool:
    """Say whether rank 0 got as far as training: then it owns the run's checkpoints."""
    owner = read_owner(run_folder / CHECKPOINTS)
    return owner is not None and owner.process == first.process.pid


def exit_code(failed: Rank) -> int:
    """Return the failed rank's exit code as a shell shows it: 128 + N when signal N killed it."""
    code = failed.code or 0
    return code if code > 0 else 128 - code


def wait_for(ranks: Sequence[Rank], seconds: float) -> None:
    """Wait until the ranks have ended, at most `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(rank.code is None for rank in ranks):
        for rank in ranks:
            rank.look()
        time.sleep(POLL_SECONDS)


def failure_message(failed: Rank, nproc: int, seconds: float) -> str:
    """Say which rank failed, how, and its last words."""
    code = failed.code or 0
    how = f"exit code {code}" if code > 0 else f"killed by signal {-code} ({signal.strsignal(-code)})"
    hint = "; the kernel may have run out of memory (see dmesg)" if code == -signal.SIGKILL else ""
    others = "" if nproc == 1 else "; the other ranks were stopped"
    message = f"rank {failed.number} failed after {seconds:.0f} s: {how}{hint}{others}"
    last = failed.log.tail(TAIL_LINES)
    if not last:
        return message
    return "\n".join([f"{message}. The end of {failed.log.path}:", *(f"  {line}" for line in last)])


def say(message: str) -> None:
    """Print for the user, beside whatever rank 0 prints."""
    print(message, file=sys.stderr, flush=True)
