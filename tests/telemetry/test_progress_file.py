"""What each rank writes about itself, for whoever looks from outside."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparse_pretrain.telemetry.launch_identity import job_step, launch_name
from sparse_pretrain.telemetry.phases import progress_path
from sparse_pretrain.telemetry.progress_file import ProgressFile
from sparse_pretrain.training.callback import StepReport


def report(step: int, loss: float = 2.0) -> StepReport:
    return StepReport(
        step=step,
        loss=loss,
        mlm_loss=loss,
        nsp_loss=None,
        kd_loss=None,
        learning_rate=0.1,
        gradient_norm=1.0,
        sparsity=0.25,
        real_tokens=100.0,
        seconds=0.5,
        applied=True,
    )


def read(folder: Path, rank: int = 0) -> dict[str, Any]:
    return json.loads(progress_path(folder, rank).read_text())


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def test_a_rank_says_who_and_where_it_is_from_the_first_moment(tmp_path: Path) -> None:
    progress = ProgressFile(tmp_path, rank=3, size=4, steps=10)
    eventually(progress.path.exists)
    facts = read(tmp_path, 3)
    assert (facts["rank"], facts["world_size"], facts["phase"], facts["steps"]) == (3, 4, "starting", 10)
    assert facts["process"] == os.getpid()
    assert "loss" not in facts
    progress.close(0)


@pytest.mark.parametrize(("code", "phase"), [(0, "finished"), (75, "stopped"), (1, "failed"), (2, "failed")])
def test_the_exit_code_becomes_the_last_phase(tmp_path: Path, code: int, phase: str) -> None:
    assert ProgressFile(tmp_path, 0, 1, 10).close(code) == code
    assert read(tmp_path)["phase"] == phase


def test_the_first_rank_adds_the_numbers_people_watch(tmp_path: Path) -> None:
    for rank in (0, 1):
        progress = ProgressFile(tmp_path, rank, 2, 10)
        progress.on_start(4, 10)
        progress.on_step(report(5, loss=float("nan")))
        progress.close(75)
    first, second = read(tmp_path, 0), read(tmp_path, 1)
    assert (first["step"], second["step"]) == (5, 5)
    assert (first["loss"], first["sparsity"], first["tokens_per_second"]) == (None, 0.25, 200.0)
    assert first["start"] == 1
    assert "loss" not in second


def test_a_phase_is_written_at_once_and_steps_only_every_few_seconds(tmp_path: Path) -> None:
    progress = ProgressFile(tmp_path, 0, 1, 10, every=60.0)
    progress.on_start(0, 10)
    eventually(lambda: progress.path.exists() and read(tmp_path)["phase"] == "training")
    time.sleep(0.1)
    before = progress.path.stat().st_mtime_ns
    for step in range(1, 6):
        progress.on_step(report(step))
        progress.on_phase("training")
    time.sleep(0.2)
    assert progress.path.stat().st_mtime_ns == before
    progress.on_phase("saving")
    eventually(lambda: read(tmp_path)["phase"] == "saving")
    assert read(tmp_path)["step"] == 5
    progress.close(0)


def test_the_last_step_before_a_hang_is_written_with_the_line_that_hangs(tmp_path: Path) -> None:
    progress = ProgressFile(tmp_path, 0, 1, 10, every=0.05)
    progress.on_start(0, 10)
    progress.on_step(report(7))
    moved = time.time()
    time.sleep(0.3)  # as a hung collective does: the thread that is watched stands still
    facts = read(tmp_path)
    assert facts["step"] == 7
    assert facts["moved"] <= moved < facts["time"]
    progress.close(1)


def test_a_disk_that_refuses_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "progress").write_text("a file where the folder should be")
    progress = ProgressFile(tmp_path, 0, 1, 10, every=0.01)
    progress.on_start(0, 10)
    progress.on_step(report(1))
    assert progress.close(0) == 0


@pytest.mark.parametrize("before", [None, '{"phase": "stopped"}'])
def test_a_mistake_leaves_the_folder_as_it_was(tmp_path: Path, before: str | None) -> None:
    path = progress_path(tmp_path, 0)
    if before is not None:
        path.parent.mkdir()
        path.write_text(before)
    progress = ProgressFile(tmp_path, 0, 1, 10, every=0.01)
    eventually(lambda: path.exists() and "starting" in path.read_text())
    progress.forget()
    progress.close(2)
    assert (path.read_text() if path.exists() else None) == before
    assert path.parent.exists() == (before is not None)


def test_starts_of_a_run_have_different_names() -> None:
    slurm = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}
    assert launch_name(slurm) != launch_name({**slurm, "SLURM_RESTART_COUNT": "1"})
    assert launch_name({"MASTER_ADDR": "a", "MASTER_PORT": "1"}) == "a:1, restart 0"
    assert job_step(slurm) == "7.0"
    assert job_step({**slurm, "RANK": "0"}) is None
    assert job_step({}) is None
