"""Signals to the ranks of a run, and to nobody else: through SLURM, or on this machine.

`scancel --signal=QUIT JOB.STEP` reaches the tasks of that step on all nodes. With `--full` it would also reach
srun, which dies of it and takes the step along; and other steps of the job would die of a SIGQUIT they don't know.
"""

import os
import signal
from collections.abc import Mapping
from pathlib import Path

from launcher.query import ask
from launcher.watch.ranks import RankProgress, Ranks
from sparse_pretrain.checkpoint.fence import is_alive, read_owner
from sparse_pretrain.checkpoint.layout import CHECKPOINTS
from sparse_pretrain.errors import FailedError


def signal_step(job_step: str, number: signal.Signals, environment: Mapping[str, str] | None = None) -> None:
    """Send a signal to all tasks of a SLURM step (`JOB.STEP`).

    Raises:
        SlurmError: SLURM does not answer.
    """
    name = number.name.removeprefix("SIG")
    ask(["scancel", f"--signal={name}", job_step], environment=environment)


def living_ranks(ranks: Ranks) -> list[RankProgress]:
    """Return the active ranks whose processes run on this machine."""
    return [rank for rank in ranks.active if rank.lives_here]


def signal_here(ranks: Ranks, run_folder: Path, number: signal.Signals) -> list[str]:
    """Send a signal to the ranks of a run on this machine; return whom it reached.

    Where no rank has written its progress (an older version, a full disk), the owner of the checkpoints is taken:
    it is rank 0, and passes a request to stop on to all.
    """
    reached = []
    for rank in living_ranks(ranks):
        if send(rank.process, number):
            reached.append(f"rank {rank.rank} (process {rank.process})")
    owner = read_owner(run_folder / CHECKPOINTS)
    if not ranks.arrived and owner is not None and is_alive(owner) and send(owner.process, number):
        reached.append(f"rank 0 (process {owner.process})")
    return reached


def send(process: int, number: signal.Signals) -> bool:
    """Send a signal; return False when the process has just ended.

    Raises:
        FailedError: it belongs to somebody else.
    """
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        raise FailedError(f"process {process} belongs to another user: {number.name} was not sent") from None
    return True
