"""A real run of two ranks, looked at, asked for its stacks, and stopped."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.watch.cancel import cancel
from launcher.watch.logs import show_stacks
from launcher.watch.ranks import read_ranks
from launcher.watch.status import RunStatus, describe_runs
from sparse_pretrain.training.signals import STOPPED_EXIT_CODE
from tests.tiny import tiny_prepared

SETTINGS = (
    *("steps=100000", "precision=fp32", "pruning.ramp_end=40", "pruning.end=50", "pruning.frequency=5"),
    *("checkpoint.every=100000", "evaluation.every=100000", "logging.histograms_every=0"),
)


def look(run: Path) -> RunStatus:
    (status,) = describe_runs([run], time.time())
    return status


@pytest.mark.slow
def test_a_run_is_seen_asked_and_stopped(tmp_path: Path) -> None:
    tiny_prepared(tmp_path / "data")
    run = tmp_path / "run"
    command = [sys.executable, "-m", "sparse_pretrain", "launch", "local", "train-tiny", "--nproc", "2"]
    launched = subprocess.Popen(
        [*command, "data.path=data", "output=run", *SETTINGS],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        seen = set()
        deadline = time.monotonic() + 200
        while (status := look(run)).state != "training" or not status.step:
            seen.add(status.state)
            assert launched.poll() is None, launched.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert "starting" in seen
        assert (status.ranks, status.ranks_expected, status.starts) == (2, 2, 1)
        assert status.loss is not None
        ranks = read_ranks(run).arrived
        # Somewhere in our own code: `training/engine.py:93`, `pruning/masks.py:80`, …
        assert all(rank.where is not None and ".py:" in rank.where for rank in ranks)
        stacks: list[str] = []
        show_stacks(run, None, stacks.append)
        for rank in (0, 1):
            shown = [line for line in stacks if line.startswith(f"rank {rank}")]
            assert any("trainer.py" in line and "in run" in line for line in shown)
        said: list[str] = []
        cancel(run, said.append, wait=100)
        assert launched.wait(30) == STOPPED_EXIT_CODE, said
        status = look(run)
        assert status.state == "stopped"
        assert status.checkpoint_step == status.step
    finally:
        launched.kill()
        launched.communicate()
