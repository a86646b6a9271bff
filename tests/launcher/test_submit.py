"""Into the queue: what is checked before, what is refused, and what is written down."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from launcher import cli_slurm
from launcher.job import Job, programs
from launcher.restart import read_lines
from launcher.site import Site
from launcher.submit import Request, check_before_the_queue, prepare_job, submit, submitting_environment
from sparse_pretrain.errors import FailedError, UserError
from tests.tiny import tiny_prepared

SBATCH = """#!/usr/bin/env bash
printf '%s\\n' "$*" >> "$FAKES/sbatch-calls"
env > "$FAKES/sbatch-environment"
[[ ! -e "$FAKES/refuse" ]] || { cat "$FAKES/refuse" >&2; exit 1; }
echo "$((100 + $(wc -l < "$FAKES/sbatch-calls")));cluster"
"""
SQUEUE = """#!/usr/bin/env bash
cat "$FAKES/queue" 2>/dev/null || true
"""


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Put a queue of files on PATH: `sbatch-calls`, `queue`, `refuse`."""
    folder = tmp_path / "fakes"
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKES", str(folder))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SPARSE_PRETRAIN_SITE", raising=False)
    monkeypatch.chdir(tmp_path)
    return folder


def a_job(folder: Path, **request: Any) -> Job:
    overrides = (f"output={folder / 'run'}",)
    return prepare_job(Request("train-tiny", overrides, **request), Site(venv="/venv"), folder)[0]


def queue(*jobs: tuple[str, str]) -> str:
    """Return what squeue would print of jobs, given their numbers and states."""
    return "".join(f"{number}|{state}|None||N/A|N/A|N/A|run\n" for number, state in jobs)


def submitted_lines(fakes: Path) -> list[str]:
    path = fakes / "sbatch-calls"
    return path.read_text().splitlines() if path.is_file() else []


def test_a_job_is_submitted_from_its_run_folder_and_written_down(fakes: Path, tmp_path: Path) -> None:
    job = a_job(tmp_path, nodes=2)
    (done,) = submit(Site(), "my-site.yaml", job)
    script = tmp_path / "run" / "slurm" / "job.sbatch"
    assert submitted_lines(fakes) == [f"--parsable {script}"]
    assert script.parent.stat().st_mode & 0o777 == 0o700
    assert "#SBATCH --nodes=2\n" in script.read_text()
    noted = json.loads((script.parent / "job.json").read_text())
    assert read_lines(script.parent / "jobs.jsonl") == [noted]
    assert noted.pop("submitted") == done.submitted
    assert noted == {
        "job_id": "101",
        "name": "run",
        "recipe": "train-tiny",
        "overrides": [f"output={tmp_path / 'run'}"],
        "nodes": 2,
        "ranks_per_node": 1,
        "site": "my-site.yaml",
        "command": ["sbatch", "--parsable", str(script)],
        "after": None,
    }


def test_each_job_of_a_chain_waits_for_the_one_before_it(fakes: Path, tmp_path: Path) -> None:
    done = submit(Site(), None, a_job(tmp_path), chain=2)
    assert [(each.job_id, each.after) for each in done] == [("101", None), ("102", "101"), ("103", "102")]
    assert [re.findall("afterany:(.*?) ", line) for line in submitted_lines(fakes)] == [[], ["101"], ["102"]]
    assert json.loads((tmp_path / "run" / "slurm" / "job.json").read_text())["job_id"] == "101"
    assert len(read_lines(tmp_path / "run" / "slurm" / "jobs.jsonl")) == 3


def test_a_job_of_a_pipeline_and_its_chain_wait_for_what_they_need(fakes: Path, tmp_path: Path) -> None:
    submit(Site(), None, a_job(tmp_path), chain=1, needs=("7", "8_1"))
    script = tmp_path / "run" / "slurm" / "job.sbatch"
    assert submitted_lines(fakes) == [
        f"--parsable --dependency=afterok:7:8_1 --kill-on-invalid-dep=yes {script}",
        # Also the second: the first may have been cancelled for want of its need.
        f"--parsable --dependency=afterok:7:8_1,afterany:101 --kill-on-invalid-dep=yes {script}",
    ]


def test_a_run_with_a_job_in_the_queue_is_not_submitted_twice(fakes: Path, tmp_path: Path) -> None:
    job = a_job(tmp_path)
    submit(Site(), None, job)
    (fakes / "queue").write_text(queue(("99", "RUNNING"), ("101", "PENDING")))
    with pytest.raises(UserError, match=r"still in the queue: 101 \(pending\); scancel it first, or --force"):
        submit(Site(), None, job)
    assert len(submitted_lines(fakes)) == 1
    submit(Site(), None, job, force=True)
    (fakes / "queue").write_text(queue(("101", "COMPLETED"), ("102", "CANCELLED"), ("99", "RUNNING")))
    submit(Site(), None, job)
    assert len(submitted_lines(fakes)) == 3


def test_what_slurm_refuses_is_one_line(fakes: Path, tmp_path: Path) -> None:
    (fakes / "refuse").write_text(
        "sbatch: error: invalid partition specified: x\n\nsbatch: error: Batch job failed\n"
    )
    with pytest.raises(
        UserError, match=r"^sbatch: error: invalid partition specified: x; error: Batch job failed$"
    ):
        submit(Site(), None, a_job(tmp_path))
    assert not (tmp_path / "run" / "slurm" / "job.json").exists()
    (fakes / "refuse").write_text("sbatch: error: Unable to contact slurm controller (connect failure)\n")
    with pytest.raises(FailedError, match="Unable to contact"):
        submit(Site(), None, a_job(tmp_path))


def test_a_machine_without_slurm_is_named(
    fakes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = a_job(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="sbatch: no such program; run this where SLURM is"):
        submit(Site(), None, job)


def test_a_job_that_submits_another_does_not_pass_its_own_limits_on() -> None:
    environment = {
        "SLURM_JOB_ID": "7",
        "SLURM_MEM_PER_NODE": "1",
        "SLURM_CONF": "/etc/x",
        "SBATCH_ACCOUNT": "a",
    }
    assert submitting_environment(environment) == {"SLURM_CONF": "/etc/x", "SBATCH_ACCOUNT": "a"}


def test_a_site_without_requeue_says_how_a_run_goes_on(fakes: Path, tmp_path: Path) -> None:
    said: list[str] = []
    submit(Site(requeue=False), None, a_job(tmp_path), say=said.append)
    assert "--chain N" in said[0]
    submit(Site(requeue=False), None, a_job(tmp_path), chain=1, force=True, say=said.append)
    assert len(said) == 1


def test_the_command_line_wins_over_the_site(tmp_path: Path) -> None:
    site = Site(nodes=4, ranks_per_node=8, time="1:00:00", venv="/venv")
    request = Request(
        "train-tiny", ("output=runs/a b", "steps=7", "pruning=null", "learning_rate.kind=linear")
    )
    job, _ = prepare_job(request, site, tmp_path)
    assert (job.nodes, job.ranks_per_node, job.time, job.name, job.ranks) == (4, 8, "1:00:00", "a b", 32)
    assert (job.output, job.steps, job.bin) == (tmp_path / "runs" / "a b", 7, "/venv/bin")
    job, _ = prepare_job(replace(request, nodes=1, ranks_per_node=2, time="30", name="x"), site, tmp_path)
    assert (job.nodes, job.ranks_per_node, job.time, job.name) == (1, 2, "30", "x")
    for wrong, message in (
        ({"nodes": 0}, "--nodes = 0"),
        ({"time": "x"}, "--time = 'x'"),
        ({"name": ""}, "--name"),
    ):
        with pytest.raises(UserError, match=message):
            prepare_job(replace(request, **wrong), site, tmp_path)  # type: ignore[arg-type]


def test_the_programs_are_the_sites_else_the_containers_else_those_that_submit() -> None:
    here = Path("/here/bin/python3")
    assert programs(Site(venv="/venv"), here) == "/venv/bin"
    assert programs(Site(python="/opt/python/bin/python3.12"), here) == "/opt/python/bin"
    assert programs(Site.model_validate({"container": {"kind": "pyxis", "image": "x"}}), here) is None
    assert programs(Site(), here) == "/here/bin"


def test_mistakes_are_found_before_the_queue(tmp_path: Path) -> None:
    def check(site: Site, *overrides: str) -> None:
        tiny = (f"data.path={tmp_path / 'data'}", f"output={tmp_path / 'run'}")
        job, recipe = prepare_job(Request("train-tiny", (*tiny, *overrides), nodes=4), site, tmp_path)
        check_before_the_queue(site, job, recipe)

    with pytest.raises(UserError, match=r"data\.path = .*prepare it first"):
        check(Site())
    # What nodes see there, we cannot.
    check(Site.model_validate({"container": {"kind": "apptainer", "image": "x.sif"}}))
    check(Site(local_disk=str(tmp_path)))
    tiny_prepared(tmp_path / "data")
    check(Site())
    check(Site(), "precision=fp16")
    with pytest.raises(UserError, match=r"batch\.global_size = 2: fewer rows than 4 ranks"):
        check(Site(), "batch.global_size=2", "batch.micro_size=1")
    assert not (tmp_path / "run").exists()


def run_command(*arguments: str) -> Any:
    app = typer.Typer()
    cli_slurm.register(app)
    return CliRunner().invoke(app, arguments)


def test_the_commands_print_submit_and_refuse(fakes: Path, tmp_path: Path) -> None:
    tiny_prepared(tmp_path / "data" / "tiny")
    rendered = run_command("render", "train-tiny", "--nodes", "2")
    assert rendered.exit_code == 0, rendered.output
    dry = run_command("slurm", "train-tiny", "--nodes", "2", "--dry-run")
    assert (dry.exit_code, dry.stdout) == (0, rendered.stdout)
    assert "dry run: nothing was submitted; 2 ranks on 2 nodes" in dry.stderr
    assert not (tmp_path / "runs").exists()

    done = run_command("slurm", "train-tiny", "--nodes", "2", "--chain", "1", "--json")
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert [job["job_id"] for job in answer["jobs"]] == ["101", "102"]
    assert (answer["ranks"], answer["script"]) == (2, rendered.stdout)
    script = tmp_path / "runs" / "train-tiny" / "slurm" / "job.sbatch"
    assert script.read_text() == rendered.stdout

    shown = run_command("slurm", "train-tiny")
    assert shown.stdout.splitlines() == [
        "submitted job 103: 1 rank on 1 node",
        f"output: {script.parent / 'job-103.out'}",
    ]
    wrong = run_command("slurm", "train-tiny", "stepps=3")
    assert isinstance(wrong.exception, UserError)
    assert len(submitted_lines(fakes)) == 3


def test_help_shows_an_example() -> None:
    for command in ("slurm", "render"):
        shown = run_command(command, "--help").output
        assert f"Try: sparse-pretrain launch {command}" in shown.replace("`", "")
