"""One rank: a process of its own group, which ends when the launcher does (Linux)."""

import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from launcher.environment import rank_environment
from sparse_pretrain.errors import UserError
from sparse_pretrain.orphans import end_with
from sparse_pretrain.telemetry.rank_log import RankLog


@dataclass
class Rank:
    """One rank's process.

    Attributes:
        number: its rank.
        process: the process, leader of its own process group.
        log: where its lines go; rank 0 prints to the terminal, its log is the training's own.
        code: its exit code, minus the signal that killed it, or None while it runs.
    """

    number: int
    process: subprocess.Popen[bytes]
    log: RankLog
    code: int | None = None

    def look(self) -> None:
        """Note whether the process has ended, and end what it left running in its group."""
        if self.code is not None:
            return
        # WNOWAIT keeps the dead process's number taken until its group is cleared: no chance that the
        # number, used again by a stranger, receives our kill.
        if os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            self.kill()

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the rank only: its children (data workers, compilers) would die of SIGUSR1."""
        if self.code is None:
            # Not Popen.send_signal, which first reaps a dead process and so frees its number.
            os.kill(self.process.pid, number)

    def kill(self) -> None:
        """End the rank and everything in its process group, now."""
        if self.code is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.code = self.process.wait()


def start_rank(
    command: Sequence[str],
    number: int,
    shared: Mapping[str, str],
    run_folder: Path,
    cores: frozenset[int] = frozenset(),
) -> Rank:
    """Start one rank as the leader of its own process group, without a standard input.

    Its own group, so that Ctrl-C reaches ranks once, through the launcher, and so that whatever a rank
    started can be ended with it.

    Args:
        command: the whole command line, the program first.
        number: the rank.
        shared: what all ranks have in their environment.
        run_folder: the run's folder, for the log of ranks other than 0.
        cores: the CPU numbers that the rank and whatever it starts may use; empty: all.

    Raises:
        UserError: the command's program does not exist.
    """
    log = RankLog(run_folder, number)
    output = None if number == 0 else log.open()
    try:
        process = subprocess.Popen(
            list(command),
            env=rank_environment(shared, number),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            process_group=0,
            preexec_fn=before_the_program(cores),
        )
    except FileNotFoundError:
        log.forget()
        raise UserError(f"{command[0]}: no such program") from None
    finally:
        if output is not None:
            output.close()
    return Rank(number, process, log)


def before_the_program(cores: frozenset[int]) -> Callable[[], None]:
    """Return what a rank does before it starts: bind itself, and ask the kernel to kill it when the launcher dies.

    Ranks whose launcher is gone would go on holding GPUs and writing checkpoints.
    """
    end_with_launcher = end_with(os.getpid())

    def before_exec() -> None:
        end_with_launcher()
        if cores:
            # Here, before any library counts cores or makes threads. A core that was taken offline meanwhile
            # is no reason to fail: the rank just wanders.
            with suppress(OSError):
                os.sched_setaffinity(0, cores)

    return before_exec
