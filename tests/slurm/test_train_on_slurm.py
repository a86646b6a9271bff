"""slurm/train.sbatch on a real cluster: what happens to a run there must not change what it trains."""

import os
import signal
from pathlib import Path

import pytest

from launcher.lab import Lab
from sparse_pretrain.checkpoint.fence import read_owner
from sparse_pretrain.checkpoint.layout import CHECKPOINTS
from tests.launched import launch_tiny
from tests.slurm.jobs import tasks, text
from tests.slurm.run import NO_LIMIT, SECONDS, SETTINGS, STEPS, Run, listens_to, losses, steps_of
from tests.tiny import tiny_prepared
from tests.training.test_preemption import same_weights

# Steps between two misfortunes.
STRETCH = 15


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_that_is_interrupted_in_every_way_ends_as_if_nothing_had_happened(
    lab: Lab, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)  # the script looks for .venv where it was submitted
    tiny_prepared(tmp_path / "data")
    # The same training without SLURM and without interruptions.
    reference = launch_tiny(tmp_path, "reference", 2, *SETTINGS, environment={"OMP_NUM_THREADS": "1"})
    try:
        run = Run(lab, tmp_path, "--nodes=2")
        job = run.job

        # Its time is nearly up.
        run.wait_for_steps(STRETCH)
        run.reach_time_limit()
        run.wait_for_requeue(1)
        assert run.saved() == max(steps_of(run.folder)), "saved where it stopped"
        assert "SIGUSR2" in text(run.output)
        run.set_time_limit(NO_LIMIT)

        # A node with everything on it.
        run.wait_for_steps(STRETCH)
        _, lost = lab.run("scontrol", "show", "hostnames", job.field("NodeList")).split()
        lab.kill_node(lost)
        lab.set_down(lost)
        run.wait_for_requeue(2)
        lab.revive_node(lost)

        # A more urgent job, before the ranks could listen.
        starting = run.wait_for_new_ranks(2)
        assert not any(listens_to(rank, signal.SIGTERM) for rank in starting)
        urgent = run.preempt()
        run.wait_for_requeue(3)
        assert "as it started" in text(run.output), "no crash, and nobody's fault"
        urgent.wait_for("COMPLETED")

        # Another one, while it trains.
        run.wait_for_steps(STRETCH)
        urgent = run.preempt()
        run.wait_for_requeue(4)
        assert run.saved() == max(steps_of(run.folder)), "saved before it made room"
        urgent.wait_for("COMPLETED")

        # The step, not the job: SLURM kills it at once, nothing is saved.
        run.wait_for_steps(STRETCH)
        lab.run("scancel", f"{job.number}.0")
        run.wait_for_requeue(5)

        # By hand.
        run.wait_for_steps(STRETCH)
        lab.run("scontrol", "requeue", job.number)
        run.wait_for_requeue(6)

        # One rank: the others lose their connection to it.
        run.wait_for_steps(STRETCH)
        os.kill(run.ranks()[0], signal.SIGKILL)
        run.wait_for_requeue(7)

        run.wait_for_the_end()
        printed, _ = reference.communicate(timeout=SECONDS)
    finally:
        reference.kill()
    assert reference.returncode == 0, printed
    assert steps_of(run.folder) == list(range(1, STEPS + 1)), "every step once"
    assert losses(run.folder) == losses(tmp_path / "reference")
    assert same_weights(run.folder, tmp_path / "reference")
    assert job.restarts == 7
    # Of eight starts one was over before it had begun.
    shown = run.status()
    assert (shown["state"], shown["starts"], shown["job_state"]) == ("finished", 7, "COMPLETED")


@pytest.mark.slow
@pytest.mark.timeout(600)
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
    run.wait_for_the_end()
    assert run.job.restarts == 1, "the old script must not take the job from its new start"
    assert steps_of(run.folder) == list(range(1, STEPS + 1))
