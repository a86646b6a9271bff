"""slurm/train.sbatch on a real cluster: what happens to a run there must not change what it trains."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.lab import Lab
from sparse_pretrain.checkpoint.fence import read_owner
from sparse_pretrain.checkpoint.layout import CHECKPOINTS, saved_steps
from tests.slurm.jobs import Job, submit, tasks, text
from tests.tiny import read_rows, tiny_prepared
from tests.training.test_preemption import same_weights

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
SECONDS = 90.0
# Steps between two misfortunes.
STRETCH = 15


def steps_of(run: Path) -> list[int]:
    return [int(step) for step in re.findall(r'"kind": "train", "step": (\d+)', text(run / "metrics.jsonl"))]


class Run:
    """One run of the tiny recipe, however many jobs it takes."""

    def __init__(self, lab: Lab, folder: Path, *options: str) -> None:
        self.lab, self.folder, self.options = lab, folder / "run", options
        self.data, self.output = folder / "data", folder / "job.out"
        self.job = self.submit()

    def submit(self) -> Job:
        return submit(
            self.lab,
            *(*self.options, f"--output={self.output}", "slurm/train.sbatch", "train-tiny"),
            *(f"data.path={self.data}", f"output={self.folder}", *SETTINGS),
        )

    def wait_for_steps(self, count: int) -> None:
        """Wait until the newest start has done `count` steps."""

        def reached() -> bool:
            assert self.job.state in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"), text(self.output)
            # What the starts before have printed and measured does not count.
            start = f"job {self.job.number}, start {self.job.restarts + 1}:"
            began = re.search(rf"{start}.*?prune step (\d+)/{STEPS}: loss", text(self.output), re.DOTALL)
            return began is not None and max(steps_of(self.folder), default=0) >= int(began.group(1)) + count

        self.lab.wait_for(reached, SECONDS, f"{count} steps\n{text(self.output)}")

    def saved(self) -> int:
        """Return the newest checkpoint's step."""
        return max(saved_steps(self.folder / CHECKPOINTS), default=0)

    def wait_for_requeue(self, restarts: int) -> None:
        self.lab.wait_for(
            lambda: self.job.restarts == restarts, SECONDS, f"requeue {restarts}\n{text(self.output)}"
        )

    def go_on_after_failure(self, restarts: int) -> None:
        """Wait until a failed run is requeued, or else submit the same command again.

        A script may requeue a job whose ranks ended with 1 or by a signal (137, 143), so many times; one that
        does not leaves it FAILED, and then the user goes on.
        """
        self.lab.wait_for(
            lambda: self.job.state == "FAILED" or self.job.restarts == restarts,
            SECONDS,
            f"the end\n{text(self.output)}",
        )
        if self.job.state == "FAILED":
            self.job = self.submit()

    def ranks(self) -> list[int]:
        return [rank for node in self.lab.nodes for rank in tasks(self.lab, node)]


def start_reference(folder: Path) -> subprocess.Popen[str]:
    """Start the same training without SLURM and without interruptions, two ranks on this machine."""
    command = [sys.executable, "-m", "sparse_pretrain", "launch", "local", "train-tiny", "--nproc", "2"]
    return subprocess.Popen(
        [*command, "data.path=data", "output=reference", *SETTINGS],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_that_is_interrupted_in_every_way_ends_as_if_nothing_had_happened(
    lab: Lab, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)  # the script looks for .venv where it was submitted
    tiny_prepared(tmp_path / "data")
    reference = start_reference(tmp_path)
    try:
        run = Run(lab, tmp_path, "--nodes=2", "--time=60")
        job = run.job

        # A signal to all ranks, as SLURM sends it before the time limit.
        run.wait_for_steps(STRETCH)
        job.cancel("--signal=USR2")
        run.wait_for_requeue(1)
        assert run.saved() == max(steps_of(run.folder)), "saved where it stopped"

        # A node with everything on it.
        run.wait_for_steps(STRETCH)
        _, lost = lab.run("scontrol", "show", "hostnames", job.field("NodeList")).split()
        lab.kill_node(lost)
        lab.set_down(lost)
        run.wait_for_requeue(2)
        lab.revive_node(lost)

        # A more urgent job.
        run.wait_for_steps(STRETCH)
        urgent = submit(
            lab, "--partition=urgent", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap=true"
        )
        run.wait_for_requeue(3)
        assert run.saved() == max(steps_of(run.folder)), "saved before it made room"
        urgent.wait_for("COMPLETED")

        # The step, not the job: SLURM kills it at once, nothing is saved.
        run.wait_for_steps(STRETCH)
        lab.run("scancel", f"{job.number}.0")
        run.go_on_after_failure(4)

        # One rank: the others lose their connection to it.
        run.wait_for_steps(STRETCH)
        os.kill(run.ranks()[0], signal.SIGKILL)
        run.go_on_after_failure(run.job.restarts + 1)

        run.job.wait_for("COMPLETED", "FAILED", seconds=SECONDS)
        printed, _ = reference.communicate(timeout=SECONDS)
    finally:
        reference.kill()
    assert run.job.state == "COMPLETED", text(run.output)
    assert reference.returncode == 0, printed
    assert steps_of(run.folder) == list(range(1, STEPS + 1)), "every step once"
    assert losses(run.folder) == losses(tmp_path / "reference")
    assert same_weights(run.folder, tmp_path / "reference")


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_rows(run, "train")]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_node_that_was_cut_off_and_trains_on_commits_nothing(
    cuttable_lab: Lab, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Split brain: SLURM has given the run to another node, the ranks of the lost one don't know."""
    monkeypatch.chdir(root)
    lab = cuttable_lab
    tiny_prepared(tmp_path / "data")
    run = Run(lab, tmp_path, "--nodes=1")
    run.wait_for_steps(5)
    cut = run.job.field("NodeList")
    (old,) = tasks(lab, cut)
    lab.cut_off(cut)
    # Nobody hears of it, and it must not be done before the new start has begun.
    os.kill(old, signal.SIGSTOP)
    lab.set_down(cut)
    run.wait_for_requeue(1)
    first = read_owner(run.folder / CHECKPOINTS)
    lab.wait_for(lambda: read_owner(run.folder / CHECKPOINTS) != first, SECONDS, "the second start")
    second = read_owner(run.folder / CHECKPOINTS)
    assert second.host != cut
    run.wait_for_steps(STRETCH)
    os.kill(old, signal.SIGCONT)
    lab.wait_for(lambda: not Path(f"/proc/{old}").exists(), SECONDS, "the old rank's end")
    assert "it committed nothing" in text(run.folder / "logs" / "rank-0.log")
    lab.heal(cut)
    run.job.wait_for("COMPLETED", seconds=SECONDS)
    assert steps_of(run.folder) == list(range(1, STEPS + 1))
