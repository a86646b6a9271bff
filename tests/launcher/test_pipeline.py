"""Pipelines without a cluster: what a file may say, what becomes of its stages, what is submitted again."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from launcher import cli_slurm
from launcher.pipeline.look import living_elements
from launcher.pipeline.plan import Decision, Living, decide
from launcher.pipeline.record import ElementRecord, PipelineRecord, StageRecord, read_record, write_record
from launcher.pipeline.render_command import render_command_stage
from launcher.pipeline.spec import is_pipeline, load_pipeline
from launcher.pipeline.stages import StageJob, stage_jobs
from launcher.pipeline.status import describe_stage, state_of
from launcher.query import Job
from sparse_pretrain.errors import UserError
from tests.launcher.cluster import ROOT, SILENT_PYTHON, FakeNode

APP = typer.Typer()
cli_slurm.register(APP)

FIVE = """\
output: runs/pipeline
stages:
  data: {command: "prepare {length}", array: {length: [128, 512]}}
  teacher: {needs: [data], train: train-tiny, overrides: [output=runs/teacher]}
  prune: {needs: [teacher], train: train-tiny, overrides: [output=runs/prune]}
  release: {needs: [prune], command: release runs/prune}
  tasks: {needs: [release], command: "tune {task} {seed}", array: {task: [a, b c], seed: [1, 2]}}
"""


def stages_of(folder: Path, text: str = FIVE) -> list[StageJob]:
    """Return the stages of a pipeline that is written into a folder."""
    path = folder / "pipeline.yaml"
    path.write_text(text)
    return stage_jobs(load_pipeline(str(path)), None, folder)


def one_stage(line: str) -> str:
    return f"output: runs/pipeline\nstages:\n  one: {line}\n"


@pytest.fixture(autouse=True)
def _no_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SPARSE_PRETRAIN_SITE", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (one_stage("{}"), "stages.one: needs either train .* or command"),
        (one_stage("{train: train-tiny, command: x}"), "needs either train .* or command"),
        (one_stage("{train: no-such-recipe}"), "stages.one: no-such-recipe: no such recipe file"),
        (one_stage("{train: train-tiny, overrides: [steps=-1]}"), "stages.one: .*steps = -1"),
        (one_stage("{command: x, nodes: 2}"), "nodes belongs to stages with train"),
        (one_stage("{train: train-tiny, array: {a: [1]}}"), "array belongs to stages with command"),
        (one_stage("{command: 'x {b}', array: {a: [1]}}"), r"command has {b}, and array has no such name"),
        (one_stage("{command: x, array: {a: [1]}}"), r"array has a, and command has no {a}"),
        (one_stage("{command: 'x {a}', array: {a: []}}"), "a has no value"),
        (one_stage("{command: 'x {a}', array: {a: [1, '1']}}"), "a has a value twice"),
        (one_stage("{command: 'x \"'}"), "No closing quotation"),
        (one_stage("{command: x, needs: [two]}"), "one needs 'two', and there is no such stage"),
        (one_stage("{command: x, needs: [one]}"), "need each other in a circle: one"),
        (one_stage("{comand: x}"), "stages.one.comand: unknown key; did you mean 'command'?"),
        (one_stage("{command: x, site: nowhere}"), "stages.one: site 'nowhere': no such file"),
        (one_stage("{command: x, time: 86400}"), "write a time limit in quotes"),
        (FIVE.replace("runs/prune]", "runs/teacher]"), "stages.prune: .*stage teacher writes there too"),
        (FIVE.replace("  data:", "  'da ta':"), "a stage's name has letters, digits, - and _ only"),
        ("output: x\nstages: {}\n", "a pipeline has at least one stage"),
    ],
)
def test_mistakes_are_one_line_that_names_the_stage(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said) as raised:
        stages_of(tmp_path, text)
    assert "\n" not in str(raised.value)


def test_a_file_with_stages_is_a_pipeline(tmp_path: Path) -> None:
    for name, text in (("a", FIVE), ("b", "steps: 10\n"), ("c", "- stages\n"), ("d", "x: [")):
        (tmp_path / name).write_text(text)
    assert [is_pipeline(str(tmp_path / name)) for name in "abcde"] == [True, False, False, False, False]


def test_stages_are_ordered_by_need_and_arrays_have_every_combination(tmp_path: Path) -> None:
    text = FIVE.replace('{needs: [release], command: "tune', '{needs: [release, data], command: "tune')
    first, rest = text.split("  data:")
    shuffled = first + "  " + "\n  ".join(reversed(f"data:{rest}".strip().split("\n  "))) + "\n"
    jobs = {job.name: job for job in stages_of(tmp_path, shuffled)}
    assert list(jobs) == ["data", "teacher", "prune", "release", "tasks"]
    assert [element.words for element in jobs["tasks"].elements] == [
        ("tune", "a", "1"),
        ("tune", "a", "2"),
        ("tune", "b c", "1"),
        ("tune", "b c", "2"),
    ]
    assert [element.name for element in jobs["data"].elements] == ["data length=128", "data length=512"]
    assert jobs["prune"].train is not None
    assert jobs["prune"].train.output == tmp_path / "runs" / "prune"
    assert jobs["prune"].train.name == "pipeline-prune"


def done_names(folder: Path, text: str = FIVE) -> dict[str, set[str]]:
    return {job.name: {element.done.name for element in job.elements} for job in stages_of(folder, text)}


def test_what_changes_is_another_thing_to_do_and_what_does_not_stays(tmp_path: Path) -> None:
    before = done_names(tmp_path)
    assert done_names(tmp_path) == before
    longer = done_names(tmp_path, FIVE.replace("[128, 512]", "[512, 64]"))
    assert len(longer["data"] & before["data"]) == 1, "wherever 512 stands in the list"
    other = done_names(tmp_path, FIVE.replace("output=runs/prune]", "output=runs/prune, seed=7]"))
    assert {name for name in before if other[name] != before[name]} == {"prune"}
    # A file that describes the command counts with what is in it.
    named = FIVE.replace("release runs/prune", "release recipe.yaml")
    (tmp_path / "recipe.yaml").write_text("a: 1\n")
    first = done_names(tmp_path, named)
    (tmp_path / "recipe.yaml").write_text("a: 2\n")
    assert done_names(tmp_path, named)["release"] != first["release"]
    # More nodes or time change nothing of what comes out.
    assert (
        done_names(tmp_path, FIVE.replace("[output=runs/prune]", "[output=runs/prune], nodes: 4, time: '9'"))
        == before
    )


def outcome(decision: Decision) -> tuple[int, int, int]:
    return len(decision.finished), len(decision.under_way), len(decision.submit)


def test_after_a_failure_the_rest_is_submitted(tmp_path: Path) -> None:
    stages = stages_of(tmp_path)
    done = [element.done for stage in stages[:2] for element in stage.elements]
    decisions = decide(stages, done, {})
    assert [outcome(each) for each in decisions] == [(2, 0, 0), (1, 0, 0), (0, 0, 1), (0, 0, 1), (0, 0, 4)]


def test_of_an_array_only_what_is_missing_is_submitted(tmp_path: Path) -> None:
    stages = stages_of(tmp_path)
    done = [element.done for stage in stages for element in stage.elements]
    missing = stages[-1].elements[2]
    decisions = decide(stages, [path for path in done if path != missing.done], {})
    assert decisions[-1].submit == (missing,)
    script = render_command_stage(stages[-1], decisions[-1].submit)
    assert "#SBATCH --array=2\n" in script
    limited = render_command_stage(replace(stages[-1], at_once=2), stages[-1].elements)
    assert "#SBATCH --array=0,1,2,3%2\n" in limited


def test_what_hangs_on_something_done_anew_is_done_anew(tmp_path: Path) -> None:
    stages = stages_of(tmp_path)
    done = [element.done for stage in stages for element in stage.elements if stage.name != "teacher"]
    decisions = decide(stages, done, {})
    assert [outcome(each) for each in decisions] == [(2, 0, 0), (0, 0, 1), (0, 0, 1), (0, 0, 1), (0, 0, 4)]


def test_jobs_that_hang_on_one_that_is_submitted_anew_are_submitted_anew(tmp_path: Path) -> None:
    stages = stages_of(tmp_path)
    data = [element.done for element in stages[0].elements]
    release = stages[3].elements[0].done
    decisions = decide(stages, data, {release: Living("7", runs=False)})
    assert decisions[3].cancel == ("7",)
    assert outcome(decisions[3]) == (0, 0, 1)
    with pytest.raises(UserError, match=r"stages\.release: job 7 runs, and needs prune, .*: scancel 7 first"):
        decide(stages, data, {release: Living("7", runs=True)})


def test_a_job_that_waits_to_do_what_is_defined_otherwise_now_is_replaced(tmp_path: Path) -> None:
    stages = stages_of(tmp_path)
    jobs = {
        name: Job(number, state)
        for name, number, state in (("data", "6", "RUNNING"), ("release", "7", "PENDING"))
    }
    record = PipelineRecord(
        "p.yaml",
        str(tmp_path),
        {
            name: StageRecord((), None, (ElementRecord(name, str(tmp_path / f"old-{name}"), job.id),))
            for name, job in jobs.items()
        },
    )
    queued = {job.id: job for job in jobs.values()}
    with pytest.raises(
        UserError, match=r"stages\.data: changed, and job 6 \(running\) still does .*: scancel 6 first"
    ):
        living_elements(stages, record, queued)
    del queued["6"]
    living, outdated = living_elements(stages, record, queued)
    assert (living, outdated) == ({}, {"release": ["7"]})
    decisions = decide(stages, [], living, outdated)
    assert [each.cancel for each in decisions] == [(), (), (), ("7",), ()]


@given(st.data())
def test_nothing_is_submitted_before_what_it_needs_is_done_or_in_the_queue(data: st.DataObject) -> None:
    """Whatever is done and whatever waits: every element has one fate, and needs are met or submitted before."""
    stages = PURE
    every = [element.done for stage in stages for element in stage.elements]
    done = data.draw(st.sets(st.sampled_from(every)))
    living = {
        path: Living(str(100 + every.index(path)), runs=False)
        for path in data.draw(st.sets(st.sampled_from(every)))
    }
    decisions = {each.stage.name: each for each in decide(stages, done, living)}
    for stage in stages:
        each = decisions[stage.name]
        fates = [element.number for element in (*each.finished, *each.submit)] + list(each.under_way)
        assert sorted(fates) == [element.number for element in stage.elements]
        if each.finished:
            assert all(decisions[need].is_finished for need in stage.needs)
        if each.under_way:
            assert not any(decisions[need].submit for need in stage.needs)


def test_a_stages_script_runs_its_command_and_notes_that_it_is_done(tmp_path: Path) -> None:
    """Words reach the command as they are, whatever is in them."""
    node = FakeNode(tmp_path, python=SILENT_PYTHON)
    words = """tune 'two words' "it's" '$(touch a)' 'x;y' '{b c}' {n}"""
    (stage,) = stages_of(
        tmp_path,
        f"output: runs/pipeline\nstages:\n  one: {{command: {json.dumps(words)}, array: {{n: [5, '`id`']}}}}\n",
    )
    (tmp_path / "bin" / "tune").write_text(
        (tmp_path / "bin" / "module").read_text().replace("module", "tune")
    )
    (tmp_path / "bin" / "tune").chmod(0o755)
    stage = replace(stage, bin=str(node.bin))
    (stage.elements[0].done.parent).mkdir(parents=True)
    script = render_command_stage(stage, stage.elements)
    node.environment["SLURM_ARRAY_TASK_ID"] = "1"
    assert node.start(script) == 0
    assert node.calls("tune") == [["two words", "it's", "$(touch a)", "x;y", "{b c}", "`id`"]]
    assert [element.done.exists() for element in stage.elements] == [False, True]
    assert not (tmp_path / "a").exists()
    (tmp_path / "bin" / "tune").write_text("#!/bin/sh\nexit 3\n")
    node.environment["SLURM_ARRAY_TASK_ID"] = "0"
    assert node.start(script) == 3
    assert not stage.elements[0].done.exists()


def test_states_of_elements_come_from_their_files_and_from_the_queue(tmp_path: Path) -> None:
    output = tmp_path / "out"
    element = ElementRecord("one", str(tmp_path / "done"), "7", str(output))
    assert state_of(replace(element, job_id=None), None) == "not submitted"
    assert state_of(element, Job("7", "PENDING")) == "waiting"
    assert state_of(element, Job("7", "RUNNING")) == "running"
    assert state_of(element, None) == "cancelled"
    output.write_text("boom\n")
    assert state_of(element, None) == "failed"
    stage = describe_stage("x", StageRecord(("data",), None, (element,)), {}, None, ("data",))
    assert (stage.state, stage.failed[0].last_lines) == ("failed", ("boom",))
    (tmp_path / "done").touch()
    assert state_of(element, None) == "done"


def test_the_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    record = PipelineRecord(
        "p.yaml", "/x", {"a": StageRecord(("b",), "/run", (ElementRecord("a", "/done", "7", "/out"),))}
    )
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record
    assert read_record(tmp_path / "none") is None
    (tmp_path / "pipeline.json").write_text('{"stages": 3}')
    with pytest.raises(UserError, match="not what `launch slurm` writes"):
        read_record(tmp_path)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "slurm" / "pipelines").glob("*.yaml")), ids=lambda path: path.stem
)
def test_the_shipped_pipelines_can_be_submitted(path: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(APP, ["slurm", str(path), "--dry-run", "--site", "gpu-accounts"])
    assert done.exit_code == 0, done.output
    scripts = done.stdout.split("# ==== ")[1:]
    assert [script.split(" ====")[0] for script in scripts] == list(load_pipeline(str(path)).stages)
    for script in scripts:
        checked = subprocess.run(
            ["bash", "-n"], input=script.split("\n", 1)[1], text=True, capture_output=True, check=False
        )
        assert (checked.returncode, checked.stderr) == (0, "")
    assert done.stderr.endswith("dry run: nothing was submitted\n")
    assert not (tmp_path / "runs").exists()


def test_options_of_a_single_run_are_refused(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(FIVE)
    for arguments, said in (
        (["p.yaml", "--nodes", "2"], "--nodes: p.yaml is a pipeline; write it into a stage"),
        (["train-tiny", "--redo", "x"], "--redo x: train-tiny is a recipe; only a pipeline has stages"),
        (["p.yaml", "--redo", "x", "--dry-run"], "--redo x: no such stage; there are data, teacher"),
    ):
        done = CliRunner().invoke(APP, ["slurm", *arguments])
        assert isinstance(done.exception, UserError)
        assert said in str(done.exception)


PURE: list[StageJob] = []


@pytest.fixture(autouse=True, scope="module")
def _pure_stages(tmp_path_factory: pytest.TempPathFactory) -> None:
    PURE[:] = stages_of(tmp_path_factory.mktemp("pure"))
