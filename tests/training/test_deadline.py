"""When an allocation ends, by whoever knows it."""

import os
import time
from datetime import datetime
from pathlib import Path

import pytest

from sparse_pretrain.training.deadline import END_TIME, Deadline, end_of_allocation

SLURM_END = "SLURM_JOB_END_TIME"
JOB = {"SLURM_JOB_ID": "4711"}


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a `squeue` may be put; no other one is found."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.defpath}")
    return tmp_path / "squeue"


def answer(squeue: Path, script: str) -> None:
    squeue.write_text(f"#!/bin/sh\n{script}\n")
    squeue.chmod(0o755)


def test_nobody_knows_an_end_without_a_scheduler(squeue: Path) -> None:
    answer(squeue, "echo 2030-01-01T00:00:00")
    assert end_of_allocation({}) is None
    assert end_of_allocation({END_TIME: "", SLURM_END: ""}) is None


def test_the_jobs_own_word_comes_first_then_slurms_then_squeues(squeue: Path) -> None:
    answer(squeue, "echo 2030-01-01T00:00:00")
    everything = {END_TIME: "1800000000.5", SLURM_END: "1900000000", **JOB}
    assert end_of_allocation(everything) == 1800000000.5
    assert end_of_allocation({**everything, END_TIME: ""}) == 1900000000.0
    assert end_of_allocation(JOB) == datetime(2030, 1, 1).timestamp()


@pytest.mark.parametrize("nonsense", ["soon", "12:30", "2030-01-01T00:00:00", "1,5"])
@pytest.mark.parametrize("name", [END_TIME, SLURM_END])
def test_a_number_that_is_none_is_no_end(squeue: Path, name: str, nonsense: str) -> None:
    assert end_of_allocation({name: nonsense}) is None


def test_squeue_is_asked_for_the_end_of_this_job_and_answers_in_local_time(
    squeue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = squeue.parent / "arguments"
    answer(squeue, f'echo "$@" > {arguments}; date -d @1800000000 +%Y-%m-%dT%H:%M:%S')
    for zone in ("UTC", "Asia/Kolkata"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        try:
            assert end_of_allocation(JOB) == 1800000000.0
        finally:
            monkeypatch.delenv("TZ")
            time.tzset()
    assert arguments.read_text() == "--noheader --jobs 4711 --format %e\n"


@pytest.mark.parametrize(
    "script",
    [
        "echo N/A",
        "echo Unknown",
        "true",
        "echo error: Invalid job id >&2; exit 1",
        "echo 2030-01-01T00:00:00; exit 1",
        "printf '2030-01-01T00:00:00\\n2030-01-02T00:00:00\\n'",
        "printf '\\377\\376'",
    ],
)
def test_an_answer_without_one_end_is_no_end(squeue: Path, script: str) -> None:
    answer(squeue, script)
    assert end_of_allocation(JOB) is None


def test_no_squeue_or_one_that_cannot_be_run_is_no_end(squeue: Path) -> None:
    assert end_of_allocation(JOB) is None
    squeue.write_bytes(b"\x7fELF but not really")
    squeue.chmod(0o755)
    assert end_of_allocation(JOB) is None


def test_a_squeue_that_hangs_does_not_hold_the_run_up(squeue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparse_pretrain.training.deadline.SQUEUE_SECONDS", 0.3)
    answer(squeue, "exec sleep 30")
    started = time.monotonic()
    assert end_of_allocation(JOB) is None
    assert time.monotonic() - started < 10


def test_a_run_leaves_when_a_step_and_a_save_no_longer_fit() -> None:
    deadline = Deadline(time.time() + 1000, margin=60)
    assert deadline.remaining() == pytest.approx(1000, abs=5)
    assert not deadline.is_near(900)
    assert deadline.is_near(945)
    assert Deadline(time.time() - 1, margin=0).is_near(0)
    assert not Deadline(float("inf"), margin=60).is_near(1e9)
