"""`launch logs`: what the ranks and the job have printed, and where the ranks are right now."""

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from launcher.query import SlurmError
from launcher.watch.folders import LOGS, job_output, rank_log
from launcher.watch.ranks import Ranks, read_ranks
from launcher.watch.reach import signal_here, signal_step
from sparse_pretrain.errors import FailedError, UserError

Say = Callable[[str], None]
POLL_SECONDS = 0.3
STACK_SECONDS = 10.0
# Behind the last byte of a dump, a second without another one ends it.
QUIET_SECONDS = 1.0
LAST_LINES = 20


class Tail:
    """One file that grows: hands out whole lines that are new."""

    def __init__(self, path: Path, label: str, position: int = 0) -> None:
        """Read `path` from byte `position` on; `label` goes before each line."""
        self.path = path
        self.label = label
        self._position = position
        self._rest = b""

    def read(self) -> list[str]:
        """Return the whole lines that were appended since the last call; none while there is no file."""
        try:
            with self.path.open("rb") as handle:
                if handle.seek(0, os.SEEK_END) < self._position:
                    # It was cut: a start that turned out to be a mistake took its lines back.
                    self._position, self._rest = 0, b""
                handle.seek(self._position)
                new = handle.read()
        except OSError:
            return []
        self._position += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        # A progress bar writes over its line: only what stands there in the end counts.
        return [self.label + line.decode(errors="replace").rstrip("\r").split("\r")[-1] for line in lines]

    def skip_to_last(self, count: int) -> list[str]:
        """Return the last lines that are there now, and go on behind them."""
        return self.read()[-count:]


def find_logs(run_folder: Path, rank: int | None, known: Sequence[Path] = ()) -> list[Tail]:
    """Return the logs of a run that are not known yet: the job's output, and those of all ranks or one.

    Args:
        run_folder: of the run.
        rank: only this one's log.
        known: files that are read already.
    """
    if rank is not None:
        tails = [Tail(rank_log(run_folder, rank), "")]
    else:
        output = job_output(run_folder)
        tails = [Tail(output, "job     | ")] if output is not None else []
        found = {number_of(path): path for path in (run_folder / LOGS).glob("rank-*.log")}
        tails += [Tail(found[number], f"rank {number:<3}| ") for number in sorted(found) if number >= 0]
    return [tail for tail in tails if tail.path not in known]


def number_of(path: Path) -> int:
    """Return the rank whose log a file is, -1 when it is none."""
    text = path.stem.removeprefix("rank-")
    return int(text) if text.isdigit() else -1


def show_logs(run_folder: Path, rank: int | None, say: Say, lines: int = LAST_LINES) -> list[Tail]:
    """Print the last lines of each log; return the logs, read to their ends.

    Raises:
        UserError: there is none.
    """
    tails = find_logs(run_folder, rank)
    if not any(tail.path.is_file() for tail in tails):
        what = "no logs yet" if rank is None else f"no log of rank {rank}"
        raise UserError(
            f"{run_folder}: {what} (looked for {run_folder / LOGS}/rank-*.log and slurm/job-*.out)"
        )
    for tail in tails:
        for line in tail.skip_to_last(lines):
            say(line)
    return tails


def follow(
    run_folder: Path, rank: int | None, say: Say, tails: list[Tail], over: Callable[[], bool] = lambda: False
) -> None:
    """Print what is appended, files that appear later included, until `over` (asked every few seconds)."""
    asked = time.monotonic()
    while True:
        for tail in find_logs(run_folder, rank, [tail.path for tail in tails]):
            tails.append(tail)
        for tail in tails:
            for line in tail.read():
                say(line)
        if time.monotonic() - asked > 5.0:
            asked = time.monotonic()
            if over():
                return
        time.sleep(POLL_SECONDS)


def show_stacks(
    run_folder: Path, rank: int | None, say: Say, environment: Mapping[str, str] | None = None
) -> None:
    """Make all ranks write the stacks of their threads into their logs, and print them.

    Args:
        run_folder: of the run.
        rank: print only this one's.
        say: takes lines for the user.
        environment: for SLURM's commands.

    Raises:
        FailedError: no rank could be asked, or none has answered.
    """
    ranks = read_ranks(run_folder)
    check_all_listen(run_folder, ranks)
    asked = [one.rank for one in ranks.active if rank in (None, one.rank)]
    tails = {
        number: Tail(path, f"rank {number:<3}| ", size(path))
        for number in asked
        for path in [rank_log(run_folder, number)]
    }
    request_stacks(run_folder, ranks, environment)
    answered = read_answers(tails, say)
    silent = [number for number in asked if number not in answered]
    if silent:
        raise FailedError(
            f"{run_folder}: no stacks from rank {', '.join(map(str, silent))} in {STACK_SECONDS:.0f} s: gone, or its "
            "file system does not answer"
        )


def check_all_listen(run_folder: Path, ranks: Ranks) -> None:
    """Make sure that every rank has begun: a process that does not know SIGQUIT yet dies of it.

    Raises:
        FailedError: some have not, or nothing runs.
    """
    if ranks.missing:
        names = ", ".join(map(str, ranks.missing))
        raise FailedError(f"{run_folder}: rank {names} has not arrived; asking now for stacks could kill it")
    if not ranks.active:
        raise FailedError(f"{run_folder}: nothing runs, there are no stacks to show")


def request_stacks(run_folder: Path, ranks: Ranks, environment: Mapping[str, str] | None) -> None:
    """Send SIGQUIT to the ranks of a run.

    Raises:
        FailedError: they cannot be reached.
    """
    step = ranks.active[0].job_step
    if step is not None:
        try:
            signal_step(step, signal.SIGQUIT, environment)
        except SlurmError as error:
            raise FailedError(f"{run_folder}: {error}") from None
        return
    if not signal_here(ranks, run_folder, signal.SIGQUIT):
        hosts = ", ".join(sorted({rank.host for rank in ranks.active}))
        raise FailedError(f"{run_folder}: no rank of it runs on this machine; they are, or were, on {hosts}")


def read_answers(tails: Mapping[int, Tail], say: Say) -> set[int]:
    """Print what ranks append until all have answered and are quiet; return those that have."""
    answered: set[int] = set()
    deadline = time.monotonic() + STACK_SECONDS
    newest = time.monotonic()
    while time.monotonic() < deadline:
        for number, tail in tails.items():
            for line in tail.read():
                say(line)
                answered.add(number)
                newest = time.monotonic()
        if len(answered) == len(tails) and time.monotonic() - newest > QUIET_SECONDS:
            break
        time.sleep(POLL_SECONDS)
    return answered


def size(path: Path) -> int:
    """Return a file's size, 0 when it is not there."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
