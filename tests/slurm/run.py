"""One run of the tiny recipe on the cluster: what it has done, and what is done to it."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from launcher.lab import Lab
from launcher.lab.processes import command_line
from sparse_pretrain.checkpoint.layout import CHECKPOINTS, saved_steps
from tests.slurm.jobs import Job, submit, tasks, text
from tests.tiny import read_rows

STEPS = 260
SETTINGS = (
    *(
        f"steps={STEPS}",
        "pruning.ramp_end=180",
        "pruning.end=220",
        "pruning.frequency=10",
        "model.dropout=0.1",
    ),
    *("checkpoint.every=20", "evaluation.every=1000", "logging.histograms_every=0"),
)
SECONDS = 180.0
# Minutes: no job here comes near it, unless it is told to.
NO_LIMIT = 60
ENDED = ("COMPLETED", "FAILED")


def steps_of(run: Path) -> list[int]:
    return [int(step) for step in re.findall(r'"kind": "train", "step": (\d+)', text(run / "metrics.jsonl"))]


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_rows(run, "train")]


class Run:
    """One run of the tiny recipe, however many starts it takes: `slurm/train.sbatch` on `folder`'s data."""

    def __init__(self, lab: Lab, folder: Path, *options: str) -> None:
        self.lab, self.folder = lab, folder / "run"
        self.output = folder / "job.out"
        self.job = submit(
            lab,
            *(*options, f"--output={self.output}", f"--time={NO_LIMIT}", "slurm/train.sbatch", "train-tiny"),
            *(f"data.path={folder / 'data'}", f"output={self.folder}", *SETTINGS),
        )

    def ranks(self) -> list[int]:
        return [rank for node in self.lab.nodes for rank in tasks(self.lab, node)]

    def saved(self) -> int:
        """Return the newest checkpoint's step."""
        return max(saved_steps(self.folder / CHECKPOINTS), default=0)

    def wait_for_steps(self, count: int) -> None:
        """Wait until the newest start has done `count` steps."""

        def reached() -> bool:
            assert self.job.state not in ENDED, text(self.output)
            # What the starts before have printed and measured does not count.
            start = f"job {self.job.number}, start {self.job.restarts + 1}:"
            began = re.search(rf"{start}.*?prune step (\d+)/{STEPS}: loss", text(self.output), re.DOTALL)
            return began is not None and max(steps_of(self.folder), default=0) >= int(began.group(1)) + count

        self.lab.wait_for(reached, SECONDS, f"{count} steps\n{text(self.output)}")

    def wait_for_requeue(self, restarts: int) -> None:
        """Wait until SLURM has it back in its queue for the `restarts`-th time."""

        def requeued() -> bool:
            assert self.job.state not in ENDED, f"not requeued\n{text(self.output)}"
            return self.job.restarts == restarts

        self.lab.wait_for(requeued, SECONDS, f"requeue {restarts}\n{text(self.output)}")

    def wait_for_the_end(self) -> None:
        self.job.wait_for(*ENDED, seconds=SECONDS)
        assert self.job.state == "COMPLETED", text(self.output)

    def wait_for_new_ranks(self, count: int) -> list[int]:
        """Return the ranks of a start, as soon as they are there: before they listen to signals."""
        found: list[int] = []

        def all_there() -> bool:
            found[:] = [rank for rank in self.ranks() if "train-tiny" in command_line(rank)]
            return len(found) == count

        self.lab.wait_for(all_there, SECONDS, f"{count} ranks\n{text(self.output)}")
        return found

    def set_time_limit(self, minutes: int) -> None:
        self.lab.run("scontrol", "update", f"JobId={self.job.number}", f"TimeLimit={minutes}")

    def reach_time_limit(self) -> None:
        """Have SLURM find that less time is left than the script's `--signal` says.

        SLURM looks twice a minute. The ranks are held still meanwhile: it is as if one step took so long.
        """
        ranks = self.ranks()
        for rank in ranks:
            os.kill(rank, signal.SIGSTOP)
        self.set_time_limit(minutes_of(self.job.field("RunTime")) + 2)
        # With the signal SLURM lets them go on.
        self.lab.wait_for(
            lambda: not any(state_of(rank, "State").startswith("T") for rank in ranks),
            SECONDS,
            "the signal before the time limit",
        )

    def preempt(self) -> Job:
        """Submit a more urgent job that needs all nodes."""
        return submit(
            *(self.lab, "--partition=urgent", f"--nodes={len(self.lab.nodes)}", "--exclusive"),
            *("--output=/dev/null", "--wrap=true"),
        )

    def status(self) -> dict[str, Any]:
        """Return what `launch status` knows."""
        done = subprocess.run(
            [sys.executable, "-m", "sparse_pretrain", "launch", "status", str(self.folder), "--json"],
            env=self.lab.environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=True,
        )
        shown: dict[str, Any] = json.loads(done.stdout)[0]
        return shown


def minutes_of(duration: str) -> int:
    """Return the whole minutes of a duration as scontrol writes it, `00:01:12`; jobs here last no day."""
    hours, minutes, _ = duration.split(":")
    return 60 * int(hours) + int(minutes)


def state_of(process: int, field: str) -> str:
    """Return a field of /proc/PID/status, nothing when the process is gone."""
    found = re.search(rf"^{field}:\s*(.*)$", text(Path(f"/proc/{process}/status")), re.MULTILINE)
    return found.group(1) if found else ""


def listens_to(process: int, number: signal.Signals) -> bool:
    """Say whether a process has a handler for a signal."""
    return bool(int(state_of(process, "SigCgt"), 16) >> (number - 1) & 1)
