"""A pipeline on one machine: real commands, a real training, no SLURM."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import tiny_prepared

PIPELINE = """\
output: runs/all
stages:
  data: {command: "touch data-{length}", array: {length: [1, 2]}}
  train:
    needs: [data]
    train: train-tiny
    overrides: [steps=4, pruning.ramp_end=2, pruning.end=3, data.path=data, output=runs/train]
    nodes: 8
    ranks_per_node: 8
  release: {needs: [train], command: sparse-pretrain release runs/train runs/release}
  last: {needs: [release], command: "test -e key"}
"""


def launch(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sparse_pretrain", "launch", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_stages_run_one_after_the_other_and_go_on_after_a_failure(tmp_path: Path) -> None:
    tiny_prepared(tmp_path / "data")
    (tmp_path / "pipeline.yaml").write_text(PIPELINE)
    first = launch(tmp_path, "local", "pipeline.yaml", "--nproc", "1")
    assert first.returncode == 1
    assert first.stderr.splitlines()[-1] == "last: ended with exit code 1; the same command goes on from here"
    assert "train: train train-tiny on 1 rank\n" in first.stderr
    assert "prune step 4/4" in first.stdout
    assert (tmp_path / "runs" / "release" / "masks.safetensors").is_file()
    shown = json.loads(launch(tmp_path, "status", "runs/all", "--json").stdout)
    states = {stage["name"]: stage["state"] for stage in shown[0]["stages"]}
    assert states == {"data": "done", "train": "done", "release": "done", "last": "not submitted"}
    assert shown[0]["slurm_problem"] is None

    (tmp_path / "key").touch()
    (tmp_path / "data-2").unlink()
    again = launch(tmp_path, "local", "pipeline.yaml", "--nproc", "1")
    assert again.returncode == 0
    assert again.stderr.splitlines() == [
        "data: done (2 of 2)",
        "train: done",
        "release: done",
        "last: test -e key",
    ]
    assert not (tmp_path / "data-2").exists(), "not done again"


def test_what_is_done_anew_takes_with_it_what_hangs_on_it(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(
        "output: out\nstages:\n"
        "  a: {command: sh -c 'echo a >> said'}\n"
        "  b: {needs: [a], command: sh -c 'echo b >> said'}\n"
        "  c: {command: no-such-program, needs: [b]}\n".replace("\\\n", "\n")
    )
    assert launch(tmp_path, "local", "p.yaml").returncode == 127
    assert launch(tmp_path, "local", "p.yaml", "--redo", "a").returncode == 127
    assert (tmp_path / "said").read_text().split() == ["a", "b", "a", "b"]
    done = launch(tmp_path, "local", "p.yaml", "--redo", "d")
    assert (done.returncode, done.stderr) == (2, "--redo d: no such stage; there are a, b, c\n")
