"""What a run's state is, by its ranks' files and by SLURM."""

import json
import platform
import time
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from launcher.cli_watch import register
from launcher.query import UNKNOWN, Job
from launcher.watch.folders import find_runs, last_line
from launcher.watch.ranks import read_ranks
from launcher.watch.render import render_runs, show_seconds
from launcher.watch.status import RunStatus, choose_job, describe_run, describe_runs, find_state
from tests.launcher.test_query import programs
from tests.launcher.watching import write_rank

PATIENCE = 600.0


def state(folder: Path, job: Job | None = None) -> tuple[str, str | None]:
    return find_state(read_ranks(folder), job, time.time(), PATIENCE)


def describe(folder: Path, job: Job | None = None) -> RunStatus:
    return describe_run(folder, read_ranks(folder), job, None, time.time(), PATIENCE)


def test_a_run_that_trains(tmp_path: Path) -> None:
    write_rank(tmp_path, 0, loss=3.25, sparsity=0.5, tokens_per_second=1234.0, start=2)
    write_rank(tmp_path, 1)
    status = describe(tmp_path)
    assert (status.state, status.detail) == ("training", None)
    assert (status.step, status.steps, status.starts, status.ranks) == (100, 1000, 2, 2)
    assert status.seconds_left == pytest.approx(450.0)
    table = render_runs([status])
    assert "100/1,000 (10%)" in table[1]
    assert "1,234" in table[1]
    assert "8 min" in table[1]


@pytest.mark.parametrize("phase", ["starting", "saving", "evaluating"])
def test_the_phase_is_the_state(tmp_path: Path, phase: str) -> None:
    write_rank(tmp_path, 0, phase=phase, world_size=1)
    assert state(tmp_path) == (phase, None)


@pytest.mark.parametrize(
    ("phases", "expected"),
    [
        (("finished", "finished"), "finished"),
        (("stopped", "stopped"), "stopped"),
        (("finished", "failed"), "failed"),
        (("training", "failed"), "ending"),
    ],
)
def test_how_a_run_ended(tmp_path: Path, phases: tuple[str, str], expected: str) -> None:
    for rank, phase in enumerate(phases):
        write_rank(tmp_path, rank, phase=phase)
    assert state(tmp_path)[0] == expected


def test_a_process_that_is_gone_without_a_word_has_died(tmp_path: Path) -> None:
    write_rank(tmp_path, 0)
    write_rank(tmp_path, 1, host=platform.node(), process=2**22 + 1)
    assert state(tmp_path) == ("died", f"rank 1: process {2**22 + 1} on {platform.node()} is gone")


def test_a_stuck_run_names_the_rank_that_is_behind_with_its_last_words(tmp_path: Path) -> None:
    now = time.time()
    for rank in range(3):
        write_rank(tmp_path, rank, world_size=3, moved=now - 700, host=f"node{rank}", step=100 - (rank == 1))
    log = tmp_path / "logs" / "rank-1.log"
    log.parent.mkdir()
    log.write_text("one\nreading shard 17\n\n")
    status = describe(tmp_path)
    assert status.state == "stuck"
    (blamed,) = status.behind
    assert (blamed.rank, blamed.host, blamed.last_line) == (1, "node1", "reading shard 17")
    lines = render_runs([status])
    assert f"{tmp_path}: no step for 12 min" in lines
    expected = f"{tmp_path}: rank 1 on node1 at step 99, others at 100; its log ends: reading shard 17"
    assert expected in lines


def test_a_rank_at_the_same_step_is_found_by_the_line_it_hangs_in(tmp_path: Path) -> None:
    now = time.time()
    for rank in range(3):
        place = "data/loader.py:88 next_step" if rank == 2 else "training/world.py:38 sum"
        write_rank(tmp_path, rank, world_size=3, moved=now - 700, where=place)
    (blamed,) = describe(tmp_path).behind
    assert (blamed.rank, blamed.why) == (
        2,
        "in data/loader.py:88 next_step, others in training/world.py:38 sum",
    )


def test_a_rank_that_writes_no_more_is_blamed_first(tmp_path: Path) -> None:
    now = time.time()
    write_rank(tmp_path, 0, moved=now - 700, step=99)
    write_rank(tmp_path, 1, moved=now - 700, time=now - 690)
    (blamed,) = describe(tmp_path).behind
    assert (blamed.rank, blamed.why.split(" for")[0]) == (1, "silent")


def test_slow_steps_are_not_stuck(tmp_path: Path) -> None:
    for rank in range(2):
        write_rank(tmp_path, rank, moved=time.time() - 700, step_seconds=80.0)
    assert state(tmp_path)[0] == "training"


def test_ranks_that_never_arrive_are_named(tmp_path: Path) -> None:
    write_rank(tmp_path, 0, phase="starting", world_size=4)
    write_rank(tmp_path, 2, phase="starting", world_size=4)
    assert state(tmp_path) == ("starting", "2 of 4 ranks are missing")
    for rank in (0, 2):
        write_rank(tmp_path, rank, phase="starting", world_size=4, moved=time.time() - 700)
    assert [one.rank for one in describe(tmp_path).behind] == [1, 3]


def test_files_of_an_earlier_start_do_not_count(tmp_path: Path) -> None:
    for rank in range(4):
        write_rank(tmp_path, rank, phase="stopped", world_size=4)
    write_rank(tmp_path, 0, launch="two", process_started=time.time())
    ranks = read_ranks(tmp_path)
    assert [rank.rank for rank in ranks.arrived] == [0]
    assert ranks.missing == (1,)


def test_nobody_writes(tmp_path: Path) -> None:
    write_rank(tmp_path, 0, world_size=1, time=time.time() - 100)
    assert state(tmp_path) == ("silent", "no rank has written for 100 s")


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        (Job("7", "PENDING", "Priority"), ("waiting", "job 7 pending: Priority")),
        (Job("7", "RUNNING"), ("starting", "job 7 runs, no rank has written yet")),
        (Job("7", "TIMEOUT"), ("failed", "job 7 is timeout, and no rank has written")),
        (
            Job("7", UNKNOWN),
            ("unknown", "SLURM does not know job 7 any more, and no rank has written"),
        ),
        (None, ("unknown", "no rank has written")),
    ],
)
def test_a_job_before_its_ranks(tmp_path: Path, job: Job | None, expected: tuple[str, str]) -> None:
    assert state(tmp_path, job) == expected


def test_a_job_and_its_ranks_together(tmp_path: Path) -> None:
    for rank in range(2):
        write_rank(tmp_path, rank, job_id="7", job_step="7.0")
    assert state(tmp_path, Job("7", "RUNNING"))[0] == "training"
    assert state(tmp_path, Job("7", UNKNOWN))[0] == "training"
    assert state(tmp_path, Job("8", UNKNOWN))[0] == "training"
    assert state(tmp_path, Job("7", "NODE_FAIL"))[0] == "died"
    assert state(tmp_path, Job("7", "CANCELLED"))[0] == "cancelled"
    assert state(tmp_path, Job("7", "PENDING", "BeginTime"))[0] == "waiting"
    # What an earlier job's ranks have left says nothing of a new one.
    assert state(tmp_path, Job("8", "RUNNING"))[0] == "starting"


def test_slurm_is_asked_once_and_a_bad_node_is_told(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for rank in range(2):
        write_rank(run, rank, job_id="7", job_step="7.0")
    environment = programs(
        tmp_path,
        squeue="echo '7|RUNNING|None|wn[1-2]|2026-11-21T19:01:41|2026-11-21T19:01:42|N/A|a run'",
        scontrol="echo 'NodeName=wn1 State=MIXED Extra=1'; echo 'NodeName=wn2 State=DOWN* Reason=lost [root@now]'",
    )
    (status,) = describe_runs([run], time.time(), PATIENCE, environment)
    assert (status.state, status.job_id, status.job_state) == ("training", "7", "RUNNING")
    assert status.bad_nodes == ("wn2: DOWN* (lost)",)


def test_of_a_chain_the_job_that_runs_counts_else_the_next_one() -> None:
    ended, runs = Job("5", "COMPLETED"), Job("6", "RUNNING")
    first, second = Job("7", "PENDING"), Job("8", "PENDING")
    assert choose_job([ended, runs, first, second]) == runs
    assert choose_job([ended, first, second]) == first
    assert choose_job([ended, Job("6", "FAILED")]) == Job("6", "FAILED")
    started = Job("5", "FAILED", nodes=("n1",))
    assert choose_job([started, Job("6", "CANCELLED")]) == started
    assert choose_job([]) is None


def test_a_controller_that_is_down_leaves_what_the_files_say(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for rank in range(2):
        write_rank(run, rank, job_id="7", job_step="7.0")
    environment = programs(tmp_path, squeue="echo 'Unable to contact slurm controller' >&2; exit 1")
    (status,) = describe_runs([run], time.time(), PATIENCE, environment)
    assert status.state == "training"
    assert status.slurm_problem == "squeue: Unable to contact slurm controller"


def test_runs_are_found_below_a_folder(tmp_path: Path) -> None:
    write_rank(tmp_path / "a" / "deep" / "run", 0)
    (tmp_path / "b" / "slurm").mkdir(parents=True)
    (tmp_path / "b" / "slurm" / "job.json").write_text('{"job_id": 7}')
    (tmp_path / "c").mkdir()
    assert find_runs(tmp_path) == [tmp_path / "a" / "deep" / "run", tmp_path / "b"]


def test_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    write_rank(tmp_path, 0)
    (tmp_path / "progress" / "rank-1.json").write_text('{"rank": 1, "pha')
    ranks = read_ranks(tmp_path)
    assert [rank.rank for rank in ranks.arrived] == [0]
    assert ranks.missing == (1,)
    assert last_line(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("seconds", "shown"), [(42, "42 s"), (180, "3 min"), (18720, "5 h 12 min"), (183600, "2 d 3 h")]
)
def test_times_for_people(seconds: float, shown: str) -> None:
    assert show_seconds(seconds) == shown


def test_commands_print_tables_and_json_and_their_exit_code_says_whether_all_is_well(tmp_path: Path) -> None:
    app = typer.Typer()
    register(app)
    write_rank(tmp_path / "well", 0, world_size=1)
    write_rank(tmp_path / "failed", 0, world_size=1, phase="failed")
    shown = CliRunner().invoke(app, ["status", str(tmp_path / "well"), "--json"])
    assert shown.exit_code == 0
    assert json.loads(shown.stdout)[0]["state"] == "training"
    assert CliRunner().invoke(app, ["status", str(tmp_path / "failed")]).exit_code == 1
    listed = CliRunner().invoke(app, ["ls", str(tmp_path)])
    assert listed.exit_code == 0
    assert [line.split()[1] for line in listed.stdout.splitlines()[1:3]] == ["failed", "training"]
