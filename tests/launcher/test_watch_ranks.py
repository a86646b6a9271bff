"""Logs, stacks and stopping, on processes of this machine."""

import json
import platform
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.watch.cancel import cancel
from launcher.watch.logs import follow, show_logs, show_stacks
from launcher.watch.ranks import read_ranks
from launcher.watch.reach import signal_here
from sparse_pretrain.errors import FailedError, UserError
from tests.launcher.test_query import programs
from tests.launcher.watching import start_ranks, write_rank


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    started = start_ranks(tmp_path / "run")
    yield started
    for process in started:
        process.kill()
        process.wait()


def test_cancel_waits_until_ranks_have_saved(tmp_path: Path, ranks: list[subprocess.Popen[bytes]]) -> None:
    said: list[str] = []
    cancel(tmp_path / "run", said.append, wait=20)
    assert [process.wait(5) for process in ranks] == [75, 75]
    assert "asked to save and leave: rank 0" in said[0]
    assert "newest checkpoint: step-0000012" in said[-1]


def test_cancel_now_kills(tmp_path: Path, ranks: list[subprocess.Popen[bytes]]) -> None:
    said: list[str] = []
    cancel(tmp_path / "run", said.append, now=True, wait=20)
    assert [process.wait(5) for process in ranks] == [-9, -9]
    assert "it has no checkpoint" in said[-1]


def test_cancelling_what_does_not_run_is_no_failure(tmp_path: Path) -> None:
    write_rank(tmp_path, 0, phase="stopped", world_size=1)
    said: list[str] = []
    cancel(tmp_path, said.append)
    assert "nothing runs" in said[0]


def test_a_process_number_that_was_used_again_gets_no_signal(tmp_path: Path) -> None:
    bystander = subprocess.Popen(["sleep", "30"])
    try:
        write_rank(tmp_path, 0, host=platform.node(), process=bystander.pid, process_started=1.0)
        assert signal_here(read_ranks(tmp_path), tmp_path, signal.SIGKILL) == []
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_stacks_of_all_ranks_are_shown_and_they_go_on(
    tmp_path: Path, ranks: list[subprocess.Popen[bytes]]
) -> None:
    said: list[str] = []
    show_stacks(tmp_path / "run", None, said.append)
    for rank in (0, 1):
        assert any(line.startswith(f"rank {rank}") and "wait_for_others" in line for line in said)
    assert all(process.poll() is None for process in ranks)


def test_stacks_are_refused_while_a_rank_could_die_of_it(
    tmp_path: Path, ranks: list[subprocess.Popen[bytes]]
) -> None:
    run = tmp_path / "run"
    for rank in (0, 1):
        path = run / "progress" / f"rank-{rank}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "world_size": 3}))
    with pytest.raises(FailedError, match="rank 2 has not arrived"):
        show_stacks(run, None, print)


def test_logs_of_job_and_ranks_are_followed_files_that_appear_later_included(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "job-7.out").write_text("old job\n")
    (tmp_path / "slurm" / "job-12.out").write_text("step 1\rstep 2\n")
    (tmp_path / "logs" / "rank-0.log").write_text("one\ntwo\nthree\n")
    said: list[str] = []
    tails = show_logs(tmp_path, None, said.append, lines=2)
    assert said == ["job     | step 2", "rank 0  | two", "rank 0  | three"]
    (tmp_path / "logs" / "rank-10.log").write_text("late\nhalf a li")
    with (tmp_path / "logs" / "rank-0.log").open("a") as log:
        log.write("four\n")
    started = time.monotonic()

    def over() -> bool:
        return time.monotonic() - started > 1

    follow(tmp_path, None, said.append, tails, over)
    assert said[3:] == ["rank 0  | four", "rank 10 | late"]
    only: list[str] = []
    show_logs(tmp_path, 0, only.append, lines=1)
    assert only == ["four"]


def test_a_run_without_logs_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no log of rank 3"):
        show_logs(tmp_path, 3, print)


def test_a_job_is_asked_to_leave_and_never_requeued(tmp_path: Path) -> None:
    """What SLURM is told, and in which order."""
    run = tmp_path / "run"
    write_rank(run, 0, job_id="7", job_step="7.3", world_size=1)
    (run / "slurm").mkdir()
    (run / "slurm" / "job.json").write_text('{"job_id": 7}')
    (run / "slurm" / "jobs.jsonl").write_text('{"job_id": 6}\n{"job_id": 7}\n')
    told = tmp_path / "told"
    tell = f'echo "$(basename $0) $*" >> {told}'
    environment = programs(
        tmp_path,
        squeue="echo '7|RUNNING|None|wn1|N/A|N/A|N/A|a'; echo '6|PENDING|Dependency||N/A|N/A|N/A|a'",
        scancel=tell,
        scontrol=f'{tell}; echo "JobId=7 JobName=a UserId=r JobState=COMPLETED Reason=None"',
    )
    cancel(run, [].append, environment=environment)
    lines = told.read_text().splitlines()
    assert lines[:3] == ["scancel 6", "scontrol update JobId=7 Requeue=0", "scancel --signal=TERM 7.3"]
    assert lines[3] == "scontrol show job -o 7"
