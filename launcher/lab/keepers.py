"""Find and end the keepers of a cluster's processes."""

import os
import signal
import time
from contextlib import suppress

from launcher.lab.keeper import MODULE
from launcher.lab.plan import Plan
from launcher.lab.processes import command_line, kill_below
from sparse_pretrain.errors import FailedError

POLL_SECONDS = 0.03
DOWN_SECONDS = 10.0


def find_keeper(plan: Plan, name: str) -> int | None:
    """Return the process that keeps a node, or the controller; None when there is none."""
    path = plan.process_file(name)
    with suppress(OSError, ValueError):
        process = int(path.read_text())
        return process if is_keeper(plan, name, process) else None
    return None


def is_keeper(plan: Plan, name: str, process: int) -> bool:
    """Say whether a process is what its file says: the number may have been used again since."""
    command = command_line(process)
    return MODULE in command and str(plan.process_file(name)) in command


def end_keeper(plan: Plan, name: str) -> None:
    """End a keeper and everything below it."""
    keeper = find_keeper(plan, name)
    if keeper is None:
        return
    with suppress(ProcessLookupError):
        os.kill(keeper, signal.SIGTERM)
    deadline = time.monotonic() + DOWN_SECONDS
    while is_keeper(plan, name, keeper):
        # It may be our child: without this it would stay, dead, until we end.
        with suppress(ChildProcessError):
            os.waitpid(keeper, os.WNOHANG)
        if time.monotonic() > deadline:
            kill_below(keeper)
            os.kill(keeper, signal.SIGKILL)
            raise FailedError(f"{name}: process {keeper} did not end by itself and was killed")
        time.sleep(POLL_SECONDS)
