"""A signal to one rank, or the end of the walltime: all save the same step and leave in time."""

import re
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from sparse_pretrain.checkpoint.integrity import read_manifest
from sparse_pretrain.checkpoint.layout import resolve_checkpoint, saved_steps
from sparse_pretrain.checkpoint.store import open_weights, read_masks
from sparse_pretrain.training.deadline import END_TIME
from tests.launched import launch_tiny
from tests.tiny import read_rows, tiny_prepared

STOPPED = 75
# Long enough to be stopped in the middle; no checkpoint but the one at the stop and the last.
LONG = (
    *("steps=60", "pruning.ramp_end=40", "pruning.end=50", "pruning.frequency=5", "model.dropout=0.1"),
    *("checkpoint.every=1000", "evaluation.every=1000", "logging.histograms_every=0", "precision=fp32"),
)


def start(
    folder: Path, output: str, nproc: int, *overrides: str, **environment: str
) -> subprocess.Popen[str]:
    return launch_tiny(folder, output, nproc, *LONG, *overrides, environment=environment)


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        printed, _ = process.communicate(timeout=200)
    finally:
        process.kill()
    return process.returncode, printed


def wait_for_steps(process: subprocess.Popen[str], run: Path, steps: int) -> None:
    path = run / "metrics.jsonl"
    deadline = time.monotonic() + 150
    while not path.is_file() or path.read_text().count('"kind": "train"') < steps:
        assert process.poll() is None, end(process)
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ranks_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The launcher's children, in the order of ranks (they are started in that order)."""
    return sorted(psutil.Process(process.pid).children(), key=lambda child: (child.create_time(), child.pid))


def same_weights(one: Path, other: Path) -> bool:
    """Whether two runs ended with the same masters and moments, bit for bit, and the same masks."""
    mine, theirs = open_weights(resolve_checkpoint(one)), open_weights(resolve_checkpoint(other))
    assert mine.shapes == theirs.shapes
    for name in mine.shapes:
        for kind in mine.kinds(name):
            if not mine.whole(kind, name).equal(theirs.whole(kind, name)):
                return False
    masks, others = read_masks(resolve_checkpoint(one)), read_masks(resolve_checkpoint(other))
    return masks is not None and others is not None and masks.digest() == others.digest()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_signal_to_one_rank_of_four_saves_all_and_resuming_equals_the_uninterrupted_run(
    tmp_path: Path,
) -> None:
    tiny_prepared(tmp_path / "data")
    code, printed = end(start(tmp_path, "whole", 4))
    assert code == 0, printed

    process = start(tmp_path, "run", 4)
    wait_for_steps(process, tmp_path / "run", 10)
    ranks = ranks_of(process)
    assert len(ranks) == 4
    asked = time.monotonic()
    ranks[2].send_signal(signal.SIGUSR2)
    code, printed = end(process)
    seconds = time.monotonic() - asked
    assert code == STOPPED, printed
    assert seconds < 10, printed
    (step,) = saved_steps(tmp_path / "run" / "checkpoints")
    assert 10 <= step < 60
    assert f"stopped at step {step} and saved" in printed
    manifest = read_manifest(resolve_checkpoint(tmp_path / "run"))
    assert manifest.ranks == 4
    assert len([name for name in manifest.files if name.startswith("weights/")]) == 4

    code, printed = end(start(tmp_path, "run", 4))
    assert code == 0, printed
    assert [row["step"] for row in read_rows(tmp_path / "run", "train")] == list(range(1, 61))
    assert same_weights(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_leaves_by_itself_before_its_walltime_is_up(tmp_path: Path) -> None:
    """With the margin longer than what is left, the first step is the last; and it says why."""
    tiny_prepared(tmp_path / "data")
    end_time = str(time.time() + 300)
    often = "evaluation.every=1"
    process = start(tmp_path, "run", 1, often, "checkpoint.walltime_margin=1000", **{END_TIME: end_time})
    code, printed = end(process)
    assert code == STOPPED, printed
    assert saved_steps(tmp_path / "run" / "checkpoints") == [1]
    assert re.search(r"stopped at step 1 and saved \(the walltime is nearly up", printed), printed
    assert read_rows(tmp_path / "run", "evaluation") == []
    code, printed = end(start(tmp_path, "run", 1, often))
    assert code == 0, printed
    assert [row["step"] for row in read_rows(tmp_path / "run", "evaluation")] == list(range(1, 61))
