"""When a job starts again: the rules by property, and the scripts that follow them, in bash."""

import json
import signal
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.render import render, render_by_hand
from launcher.restart import (
    Attempt,
    Policy,
    append,
    decide,
    excluded_nodes,
    first_failing_node,
    newest_step,
    reached_step,
    read_lines,
)
from launcher.site import RestartPolicy, Site
from tests.launcher.cluster import FakeNode

POLICY = Policy(max_restarts=3, same_step_failures=2, exclude_after=2)
POLICIES = st.builds(
    Policy,
    max_restarts=st.integers(0, 5),
    same_step_failures=st.integers(1, 4),
    exclude_after=st.integers(0, 3),
)
ATTEMPTS = st.builds(
    Attempt,
    code=st.sampled_from([1, 2, 75, 0, 137, 139]),
    step=st.integers(0, 3),
    node=st.sampled_from([None, "n1", "n2"]),
)
CRASHES = st.builds(
    Attempt, code=st.sampled_from([1, 137]), step=st.integers(0, 9), node=st.sampled_from([None, "n1"])
)


@given(policy=POLICIES, before=st.lists(ATTEMPTS), step=st.integers(0, 9))
def test_a_mistake_and_a_finished_run_never_start_again(
    policy: Policy, before: list[Attempt], step: int
) -> None:
    assert decide(policy, [*before, Attempt(2, step)]).verdict == "give-up"
    assert decide(policy, [*before, Attempt(0, step)]).verdict == "finished"


@given(policy=POLICIES, attempts=st.lists(CRASHES, min_size=1))
def test_a_job_crashes_no_more_often_than_its_limit_allows(policy: Policy, attempts: list[Attempt]) -> None:
    starts = 1
    while starts < len(attempts) and decide(policy, attempts[:starts]).verdict == "requeue":
        starts += 1
    assert starts <= policy.max_restarts + 1


@given(policy=POLICIES, steps=st.lists(st.integers(1, 100), min_size=1, unique=True).map(sorted))
def test_a_run_that_gets_further_is_continued_however_often_it_is_stopped(
    policy: Policy, steps: list[int]
) -> None:
    assert decide(policy, [Attempt(75, step) for step in steps]).verdict == "requeue"


@given(policy=POLICIES, attempts=st.lists(ATTEMPTS, min_size=1))
def test_only_nodes_that_failed_often_enough_are_left_out(policy: Policy, attempts: list[Attempt]) -> None:
    crashes = [attempt.node for attempt in attempts if attempt.crashed]
    for node in excluded_nodes(policy, attempts):
        assert policy.exclude_after > 0
        assert crashes.count(node) >= policy.exclude_after
    decision = decide(policy, attempts)
    assert decision.verdict == "requeue" or decision.excluded == ()


def test_failures_at_one_step_end_a_job_and_failures_at_several_do_not() -> None:
    assert decide(POLICY, [Attempt(1, 40), Attempt(1, 70)]).verdict == "requeue"
    same = decide(POLICY, [Attempt(1, 40), Attempt(137, 40)])
    assert same.verdict == "give-up"
    assert same.reason == "failed at step 40 (exit code 137), as 2 starts in a row: it would do so again"


def test_a_job_that_is_stopped_three_times_before_its_next_step_gives_up() -> None:
    assert decide(POLICY, [Attempt(75, 40)] * 2).verdict == "requeue"
    assert "longer time limit" in decide(POLICY, [Attempt(75, 40)] * 3).reason


def test_the_signal_to_leave_is_no_crash_when_it_comes_too_early() -> None:
    """Python takes seconds to start, and SLURM's clock is coarse."""
    decision = decide(Policy(0, 1, 1), [Attempt(128 + signal.SIGUSR2, 0, "n2")])
    assert (decision.verdict, decision.excluded) == ("requeue", ())
    assert decision.reason == "stopped at step 0 as it started"


def test_a_preemption_of_ranks_that_cannot_listen_yet_is_no_crash_and_blames_no_node() -> None:
    early = Attempt(128 + signal.SIGTERM, 5)
    assert not early.crashed
    assert decide(POLICY, [early, early]).verdict == "requeue"
    assert decide(POLICY, [early] * 5).verdict == "requeue", "it says nothing about the time limit"
    assert decide(POLICY, [early]).reason == "stopped at step 5 as it started"


def test_a_node_that_failed_twice_is_left_out_before_the_step_is_blamed() -> None:
    twice = [Attempt(1, 0, "n2"), Attempt(1, 0, "n2")]
    assert decide(POLICY, twice).excluded == ("n2",)
    assert decide(POLICY, [*twice, Attempt(1, 0, "n1")]).verdict == "give-up"
    assert decide(Policy(3, 2, 0), twice).verdict == "give-up"


SRUN_SAYS = """\
srun: error: old: task 0: Exited with exit code 1
job 7, start 2: 2 ranks on n[1-2]
srun: error: n2: task 1: Killed
srun: error: n1: task 0: Exited with exit code 1
"""


def test_the_node_to_blame_is_that_of_the_first_task_that_failed_in_this_start() -> None:
    assert first_failing_node(SRUN_SAYS) == "n2"
    assert first_failing_node("job 7, start 2: x\n") is None
    assert first_failing_node("srun: error: n[1-2]: tasks 0-1: Exited with exit code 1\n") is None
    assert (
        first_failing_node("srun: error: gpu-07.cluster: tasks 1,3-4: Segmentation fault\n")
        == "gpu-07.cluster"
    )


def test_the_step_is_what_rank_0_reported_in_this_start_else_the_newest_checkpoint(tmp_path: Path) -> None:
    assert (reached_step(tmp_path, 0.0), newest_step(tmp_path)) == (0, 0)
    (tmp_path / "checkpoints" / "step-0000030").mkdir(parents=True)
    assert reached_step(tmp_path, 0.0) == 30
    progress = tmp_path / "progress" / "rank-0.json"
    progress.parent.mkdir()
    progress.write_text('{"step": 44, "time": 1000.5}')
    assert (reached_step(tmp_path, 1000.0), reached_step(tmp_path, 1001.0)) == (44, 30)
    # Which is up to some seconds old: the metrics know it first.
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "time": 1}\n{"step": 46, "time": 1000.9}\n{"st')
    assert (reached_step(tmp_path, 1000.0), reached_step(tmp_path, 1001.0)) == (46, 30)
    (tmp_path / "metrics.jsonl").unlink()
    for broken in ("", "[]", '{"step": "x", "time": 2000}', '{"time": 2000}', '{"step": 9, "time": "x"}'):
        progress.write_text(broken)
        assert reached_step(tmp_path, 0.0) == 30


def test_a_record_that_a_crash_cut_off_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "restarts.jsonl"
    path.write_text('{"a": 1}\n17\n{"b": 2}\n{"c": ')
    assert read_lines(path) == [{"a": 1}, {"b": 2}]


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    return FakeNode(tmp_path)


def test_a_run_that_saved_and_left_is_requeued_once(node: FakeNode) -> None:
    node.end_ranks_with(75, step=40)
    assert node.start(render(Site(), node.job())) == 75
    assert node.requeues() == 1
    (end,) = node.record("end")
    assert (end["verdict"], end["step"], end["code"]) == ("requeue", 40, 75)
    assert "job 77: stopped at step 40 and saved" in node.output.read_text()
    assert (node.run / "slurm").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("code", [0, 2])
def test_a_finished_run_and_a_mistake_are_not_requeued(node: FakeNode, code: int) -> None:
    node.end_ranks_with(code)
    assert node.start(render(Site(), node.job())) == code
    assert node.requeues() == 0


def test_a_run_that_crashes_is_requeued_until_its_limit(node: FakeNode) -> None:
    script = render(Site(restart=RestartPolicy(max_restarts=2)), node.job())
    for restarts, step, expected in ((0, 10, 1), (1, 20, 1), (2, 30, 0)):
        node.restarts = restarts
        node.end_ranks_with(1, step)
        assert node.start(script) == 1
        assert node.requeues() == expected
    assert "failed at step 30 (exit code 1); this job has crashed 3 times" in node.output.read_text()
    assert node.record("lost") == []


def test_a_run_that_crashes_twice_at_one_step_gives_up(node: FakeNode) -> None:
    script = render(Site(), node.job())
    node.end_ranks_with(139, step=17)
    assert (node.start(script), node.requeues()) == (139, 1)
    node.restarts = 1
    assert (node.start(script), node.requeues()) == (139, 0)
    assert [end["verdict"] for end in node.record("end")] == ["requeue", "give-up"]


def test_a_node_that_failed_twice_is_left_out_after_the_requeue(node: FakeNode) -> None:
    """SLURM takes a list of nodes for pending jobs only."""
    script = render(Site(exclude=("bad[1-2]",)), node.job())
    node.end_ranks_with(1, step=10, node="n2")
    node.start(script)
    node.restarts = 1
    node.end_ranks_with(1, step=20, node="n2")
    node.start(script)
    assert node.calls("scontrol")[-2:] == [
        ["requeue", "77"],
        ["update", "JobId=77", "ExcNodeList=bad[1-2],n2"],
    ]
    assert "from now on without n2" in node.output.read_text()


def test_no_node_is_left_out_where_too_few_would_remain(node: FakeNode) -> None:
    script = render(Site(), node.job())
    for node.restarts in (0, 1):
        node.end_ranks_with(1, step=node.restarts, node="n2")
        (node.folder / "sbatch-code").write_text("1")
        node.start(script)
    (tried,) = node.calls("sbatch")
    assert tried[:4] == ["--test-only", "--partition=main", "--nodes=2", "--exclude=n2"]
    assert node.calls("scontrol")[-1] == ["requeue", "77"]
    assert "too few nodes would remain without n2" in node.output.read_text()


def test_a_restart_that_slurm_made_itself_is_noted_once(node: FakeNode) -> None:
    script = render(Site(), node.job())
    node.restarts = 1
    node.end_ranks_with(75, step=5)
    node.start(script)
    node.restarts = 2
    node.end_ranks_with(0)
    node.start(script)
    (lost,) = node.record("lost")
    assert (lost["restart"], lost["job_id"]) == (1, "77")
    assert len(node.record("start")) == 2


def test_a_start_that_lost_the_job_to_a_later_one_does_not_requeue_it(node: FakeNode) -> None:
    """Its node was cut off; when it hears of the end of its ranks, the job trains elsewhere."""
    later = {"event": "start", "job_id": "77", "restart": 1}
    append(node.run, {**later, "job_id": "78"})
    node.end_ranks_with(1, step=3)
    node.start(render(Site(), node.job()))
    assert node.calls("scontrol")[-1] == ["requeue", "77"]
    append(node.run, later)
    ends = len(node.record("end"))
    node.start(render(Site(), node.job()))
    assert "started it anew elsewhere" in node.output.read_text()
    assert ["requeue", "77"] not in node.calls("scontrol")
    assert len(node.record("end")) == ends


def test_a_job_of_a_chain_ends_at_once_when_all_steps_are_done(node: FakeNode) -> None:
    (node.run / "checkpoints" / "step-0000100").mkdir(parents=True)
    assert node.start(render(Site(), node.job(steps=100))) == 0
    assert node.calls("srun") == []
    assert "all 100 steps are done" in node.output.read_text()
    assert node.start(render(Site(), node.job(steps=101))) == 0
    assert len(node.calls("srun")) == 1


def test_a_job_that_waited_while_another_gave_up_ends_at_once_and_a_new_one_runs(node: FakeNode) -> None:
    script = render(Site(), node.job())
    node.end_ranks_with(2)
    assert node.start(script) == 2
    submitted = node.run / "slurm" / "jobs.jsonl"
    node.job_id = "78"
    submitted.write_text(json.dumps({"job_id": "78", "submitted": time.time() - 100}) + "\n")
    # No success: a stage of a pipeline that waits for this job must not begin.
    assert node.start(script) == 1
    assert node.calls("srun") == []
    assert "job 77 gave up while this one waited: a mistake in the input" in node.output.read_text()
    node.job_id = "79"
    submitted.write_text(json.dumps({"job_id": "79", "submitted": time.time() + 100}) + "\n")
    assert node.start(script) == 2
    assert len(node.calls("srun")) == 1


def test_a_stage_of_a_pipeline_notes_that_it_is_done(node: FakeNode) -> None:
    done = node.folder / "done-1"
    script = render(Site(), node.job(done=done))
    for code in (2, 75):
        node.end_ranks_with(code)
        assert node.start(script) == code
        assert not done.exists()
    node.end_ranks_with(0)
    assert node.start(script) == 0
    assert done.exists()
    # A job that finds all steps done has nothing to train, and says the same.
    done.unlink()
    (node.run / "checkpoints" / "step-0000100").mkdir(parents=True)
    (node.run / "checkpoints" / "step-0000100" / "manifest.json").touch()
    assert node.start(script) == 0
    assert node.calls("srun") == []
    assert done.exists()


@pytest.mark.parametrize(("code", "requeues"), [(75, 1), (1, 0), (0, 0)])
def test_without_an_answer_saved_work_goes_on_and_a_crash_does_not(
    tmp_path: Path, code: int, requeues: int
) -> None:
    node = FakeNode(tmp_path, python="exit 1")
    node.end_ranks_with(code)
    assert node.start(render(Site(), node.job())) == code
    assert node.requeues() == requeues


def test_where_jobs_do_not_requeue_the_user_is_told_how_to_go_on(node: FakeNode) -> None:
    node.end_ranks_with(75, step=3)
    assert node.start(render(Site(requeue=False), node.job())) == 75
    assert node.requeues() == 0
    assert "to continue: the next job of the chain, or the same command again" in node.output.read_text()


@pytest.fixture
def checkout(node: FakeNode) -> FakeNode:
    """Return a node whose programs lie where the script for editing by hand looks for them."""
    (node.folder / ".venv").mkdir()
    (node.folder / ".venv" / "bin").symlink_to(node.bin)
    return node


def test_the_script_for_editing_by_hand_follows_the_same_policy(checkout: FakeNode) -> None:
    checkout.end_ranks_with(75, step=7)
    arguments = ["train-tiny", f"output={checkout.run}", "--allow-change"]
    assert checkout.start(render_by_hand(Site()), *arguments) == 75
    assert checkout.calls("sparse-pretrain") == [["train", *arguments]]
    assert checkout.requeues() == 1
    assert [end["step"] for end in checkout.record("end")] == [7]


def test_the_script_for_editing_by_hand_ends_before_the_ranks_when_the_recipe_is_wrong(
    checkout: FakeNode,
) -> None:
    assert checkout.start(render_by_hand(Site())) == 2
    assert checkout.start(render_by_hand(Site()), "train-tiny", "stepps=3") == 2
    assert checkout.calls("srun") == []
    said = checkout.output.read_text()
    assert "usage: sbatch slurm/train.sbatch" in said
    assert "stepps: unknown key; did you mean 'steps'?" in said
