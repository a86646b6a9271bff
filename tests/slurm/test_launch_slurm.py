"""`launch slurm` on a real cluster: four ranks train as on one machine, and a name is only a name."""

import subprocess
import sys
from pathlib import Path

import pytest

from launcher.lab import Lab
from launcher.restart import SUBMITTED, read_lines
from tests.launched import launch_tiny
from tests.slurm.jobs import Job, text
from tests.slurm.run import SECONDS, losses
from tests.tiny import tiny_prepared

STEPS = 12
SETTINGS = (f"steps={STEPS}", "pruning.end=10", "model.dropout=0.1", "logging.histograms_every=0")
# Run as code anywhere on its way (sbatch's lines, the script, srun, python), each part of it would leave a file.
HOSTILE = "it's $(touch hacked-1) `touch hacked-2` \"; touch hacked-3; # 100 % \\ ünïcode && touch hacked-4"


def launch_slurm(lab: Lab, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Not the one of whoever runs the tests.
    (folder / "site.yaml").write_text("{}\n")
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "sparse_pretrain",
            "launch",
            "slurm",
            "train-tiny",
            *("data.path=data", "--site", "site.yaml"),
            *arguments,
        ],
        cwd=folder,
        env=lab.environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_of_hostile_names_trains_on_two_nodes_of_two_ranks_like_four_ranks_here(
    lab: Lab, tmp_path: Path
) -> None:
    folder = tmp_path / "two words; touch hacked-5 $(touch hacked-6)"
    tiny_prepared(folder / "data")
    run = folder / HOSTILE.replace("\\", "")
    # The value is YAML, where a quote within quotes is written twice.
    output = "output='{}'".format(run.name.replace("'", "''"))
    options = ("--name", HOSTILE, "--nodes", "2", "--ranks-per-node", "2", "--time", "30")
    done = launch_slurm(lab, folder, *SETTINGS, output, *options)
    assert done.returncode == 0, done.stderr
    assert "4 ranks on 2 nodes" in done.stdout
    (submitted,) = read_lines(run / "slurm" / SUBMITTED)
    assert submitted["name"] == HOSTILE
    job = Job(lab, submitted["job_id"])
    shown = lab.run("squeue", "--noheader", "--format=%j", f"--jobs={job.number}").strip()
    assert shown == HOSTILE
    job.wait_for("COMPLETED", "FAILED", seconds=SECONDS)
    printed = text(run / "slurm" / f"job-{job.number}.out")
    assert job.state == "COMPLETED", printed
    assert f"prune step {STEPS}/{STEPS}" in printed

    reference = launch_tiny(folder, "reference", 4, *SETTINGS, environment={"OMP_NUM_THREADS": "1"})
    try:
        said, _ = reference.communicate(timeout=SECONDS)
    finally:
        reference.kill()
    assert reference.returncode == 0, said
    assert losses(run) == losses(folder / "reference")
    assert len(losses(run)) == STEPS
    touched = [
        path for place in (tmp_path, folder, run, Path.cwd(), Path.home()) for path in place.glob("hacked-?")
    ]
    assert touched == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_goes_on_with_fewer_nodes_when_no_more_are_left(lab: Lab, tmp_path: Path) -> None:
    tiny_prepared(tmp_path / "data")
    steps = ("steps=150", "pruning.end=100", "checkpoint.every=20", "evaluation.every=1000")
    done = launch_slurm(lab, tmp_path, *steps, "output=run", "--nodes", "2", "--min-nodes", "1")
    assert done.returncode == 0, done.stderr
    (submitted,) = read_lines(tmp_path / "run" / "slurm" / SUBMITTED)
    job, output = Job(lab, submitted["job_id"]), tmp_path / "run" / "slurm" / f"job-{submitted['job_id']}.out"
    lab.wait_for(lambda: "step 20: saved" in text(output), SECONDS, "twenty steps")
    for node in lab.nodes[1:]:
        lab.run("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test")
    job.cancel("--signal=USR2")
    job.wait_for("COMPLETED", "FAILED", seconds=SECONDS)
    printed = text(output)
    assert job.state == "COMPLETED", printed
    assert f"job {job.number}, start 1: 2 ranks on {lab.nodes[0][:-1]}[" in printed
    assert f"job {job.number}, start 2: 1 rank on {lab.nodes[0]}\n" in printed
    assert len(losses(tmp_path / "run")) == 150


@pytest.mark.parametrize(("name", "shown"), [("a\nb", r"'a\nb'"), ("a\x1b[31m", r"'a\x1b[31m'")])
def test_a_name_that_no_quoting_brings_through_is_refused(
    lab: Lab, tmp_path: Path, name: str, shown: str
) -> None:
    tiny_prepared(tmp_path / "data")
    done = launch_slurm(lab, tmp_path, "output=run", "--name", name)
    assert done.returncode == 2
    assert done.stderr.startswith(f"name = {shown}: sbatch cannot take it")
    assert not (tmp_path / "run").exists()
    assert lab.run("squeue", "--noheader") == ""
