"""Reading what SLURM prints: recorded from version 22.05.8 (`slurm_output/`)."""

import os
import stat
import time
from pathlib import Path

import pytest

from launcher.query import (
    UNKNOWN,
    Job,
    Node,
    SlurmError,
    ask,
    expand_nodes,
    find_job,
    find_jobs,
    moment,
    parse_jobs,
    parse_nodes,
    parse_squeue,
)

RECORDED = Path(__file__).parent / "slurm_output"


def recorded(name: str) -> str:
    return (RECORDED / f"{name}.txt").read_text()


def programs(folder: Path, **scripts: str) -> dict[str, str]:
    """Make programs of these names from shell scripts, and return an environment that finds them."""
    for name, body in scripts.items():
        path = folder / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


def test_a_running_job_whose_name_and_comment_hold_spaces_and_equal_signs() -> None:
    (job,) = parse_jobs(recorded("scontrol_show_running_job"))
    assert job == Job(
        id="1",
        state="RUNNING",
        nodes=("wn1", "wn2"),
        submitted=moment("2026-11-21T19:01:41"),
        started=moment("2026-11-21T19:01:42"),
        ends=moment("2026-11-21T19:11:42"),
        name="my run = x",
        restarts=0,
        requeue=True,
        output="/tmp/wlab/job-1.out",
    )
    assert job.runs
    assert not job.waits


def test_both_programs_say_the_same_of_all_jobs() -> None:
    shown = {job.id: job for job in parse_jobs(recorded("scontrol_show_job"))}
    listed = {job.id: job for job in parse_squeue(recorded("squeue"))}
    assert shown.keys() == listed.keys()
    for number, job in listed.items():
        assert (job.state, job.name) == (shown[number].state, shown[number].name)
        assert set(job.nodes) == set(shown[number].nodes)
    states = {job.state for job in listed.values()}
    assert states == {"CANCELLED", "COMPLETED", "FAILED", "PENDING"}


def test_why_a_job_waits() -> None:
    jobs = {job.id: job for job in parse_squeue(recorded("squeue"))}
    assert jobs["2"].reason == "BeginTime"
    assert jobs["7"].reason is not None
    assert jobs["7"].reason.startswith("Nodes required for job are DOWN, DRAINED")
    assert jobs["7"].waits


def test_a_drained_node_is_told_with_its_reason() -> None:
    assert parse_nodes(recorded("scontrol_show_nodes")) == [
        Node("wn1", "IDLE"),
        Node("wn2", "IDLE+DRAIN", "disk full"),
    ]


@pytest.mark.parametrize(
    ("state", "well"),
    [
        ("IDLE", True),
        ("MIXED", True),
        ("ALLOCATED", True),
        ("IDLE+DRAIN", False),
        ("DOWN*", False),
        ("IDLE*", False),
    ],
)
def test_which_states_of_a_node_are_good(state: str, well: bool) -> None:
    assert Node("n", state).is_well is well


@pytest.mark.parametrize(
    ("short", "names"),
    [
        ("", ()),
        ("(null)", ()),
        ("a", ("a",)),
        ("a[1-3]", ("a1", "a2", "a3")),
        ("gpu[08-10,15],b-2", ("gpu08", "gpu09", "gpu10", "gpu15", "b-2")),
        ("r[1-2]n[1-2]", ("r1n1", "r1n2", "r2n1", "r2n2")),
    ],
)
def test_short_lists_of_nodes(short: str, names: tuple[str, ...]) -> None:
    assert expand_nodes(short) == names


def test_a_job_that_has_left_the_queues_memory_is_unknown(tmp_path: Path) -> None:
    invalid = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"
    environment = programs(tmp_path, squeue=invalid, scontrol=invalid)
    assert find_jobs(["999"], environment) == {"999": Job("999", UNKNOWN)}
    assert find_job("999", environment) == Job("999", UNKNOWN)


def test_a_controller_that_cannot_be_reached_is_an_error_not_an_unknown_job(tmp_path: Path) -> None:
    says = "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1"
    environment = programs(tmp_path, squeue=says, scontrol=says)
    with pytest.raises(SlurmError, match=r"squeue: .*Unable to contact slurm controller"):
        find_jobs(["1"], environment)
    with pytest.raises(SlurmError, match=r"scontrol: .*Unable to contact slurm controller"):
        find_job("1", environment)


def test_a_program_that_does_not_answer_is_not_waited_for(tmp_path: Path) -> None:
    environment = programs(tmp_path, slow="exec sleep 30")
    started = time.monotonic()
    with pytest.raises(SlurmError, match="no answer in"):
        ask([str(tmp_path / "slow")], 0.2, environment)
    assert time.monotonic() - started < 5


def test_no_slurm_here_is_said_so() -> None:
    with pytest.raises(SlurmError, match="no such program; is this a machine of the cluster"):
        ask(["squeue-that-nobody-has"])
