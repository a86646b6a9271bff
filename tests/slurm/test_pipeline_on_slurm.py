"""A pipeline on a real cluster: data, teacher, its release, pruning, release, fine-tuning; one of them fails."""

import csv
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.lab import Lab
from tests.tiny import WORDS, read_rows, tiny_tokenizer

SECONDS = 180.0
DATA = """\
output: data/32
sources: {books: {kind: books, path: books}}
tokenizer: tokenizer
format: pairs
validation_fraction: 0.2
minimum_characters: 20
rows_per_shard: 100
"""
TASK = """\
output: runs/task
model: runs/release
task: {kind: classification, train: train.csv, validation: validation.csv, text: text, label: label}
training: {epochs: 1, batch_size: 16, max_length: 32}
"""
PIPELINE = """\
output: runs/pipeline
stages:
  data:
    command: sparse-pretrain data prepare data.yaml sequence_length={length} output=data/{length}
    array: {length: [32, 48]}
  teacher:
    needs: [data]
    train: train-tiny
    overrides: [pruning=null, learning_rate.kind=linear, steps=6, data.path=data/32, output=runs/teacher]
  teacher-release:
    needs: [teacher]
    command: sparse-pretrain release runs/teacher runs/teacher/release
  prune:
    needs: [teacher-release]
    train: train-tiny
    overrides:
      - distillation.teacher=runs/teacher/release
      - data.path=data/MISSPELT
      - output=runs/prune
    nodes: 2
  release:
    needs: [prune]
    command: sparse-pretrain release runs/prune runs/release
  tasks:
    needs: [release]
    command: sparse-pretrain finetune task.yaml seed={seed} 'output=runs/task {seed}'
    array: {seed: [1, 2]}
"""


def write_inputs(folder: Path) -> None:
    """Books of few words, a tokenizer that knows them, and a task whose labels mean nothing."""
    generator = random.Random(0)

    def sentence(words: int) -> str:
        return " ".join(generator.choices(WORDS, k=words)).capitalize() + "."

    (folder / "books").mkdir(parents=True)
    for number in range(12):
        paragraphs = [" ".join(sentence(8) for _ in range(6)) for _ in range(8)]
        (folder / "books" / f"{number}.txt").write_text("\n\n".join(paragraphs))
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    for name, count in (("train", 64), ("validation", 16)):
        with (folder / f"{name}.csv").open("w", newline="") as handle:
            rows = csv.writer(handle)
            rows.writerow(["text", "label"])
            rows.writerows([sentence(6), generator.choice(["yes", "no"])] for _ in range(count))
    for name, content in (("data.yaml", DATA), ("task.yaml", TASK), ("pipeline.yaml", PIPELINE)):
        (folder / name).write_text(content)


class User:
    """Somebody at the cluster's login node."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab, self.folder = lab, folder

    def launch(self, *arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "sparse_pretrain", "launch", *arguments],
            cwd=self.folder,
            env={**os.environ, **self.lab.environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def states(self, code: int) -> dict[str, str]:
        (status,) = json.loads(self.launch("status", "runs/pipeline", "--json", code=code))
        return {
            stage["name"]: f"{stage['state']} {stage['done']}/{stage['total']}" for stage in status["stages"]
        }

    def wait_until_idle(self) -> None:
        self.lab.wait_for(lambda: not self.lab.run("squeue", "--noheader").strip(), SECONDS, "an empty queue")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_after_a_failure_only_what_is_not_done_is_done(lab: Lab, tmp_path: Path) -> None:
    folder = tmp_path / "user's folder"
    write_inputs(folder)
    user = User(lab, folder)

    told = user.launch("slurm", "pipeline.yaml")
    jobs = dict(re.findall(r"^([\w-]+): submitted job (\d+)", told, re.MULTILINE))
    assert list(jobs) == ["data", "teacher", "teacher-release", "prune", "release", "tasks"]
    assert f"tasks: submitted job {jobs['tasks']} (2 of 2), after {jobs['release']}" in told
    # What is under way is left alone.
    assert user.launch("slurm", "pipeline.yaml").count("under way") == 6
    user.wait_until_idle()
    assert user.states(code=1) == {
        "data": "done 2/2",
        "teacher": "done 1/1",
        "teacher-release": "done 1/1",
        "prune": "failed 0/1",
        "release": "cancelled 0/1",
        "tasks": "cancelled 0/2",
    }
    shown = user.launch("status", "runs/pipeline", code=1)
    assert "data/MISSPELT" in shown, "the reason is shown"

    before = {path: path.stat().st_mtime_ns for path in (folder / "data").rglob("*") if path.is_file()}
    trained = (folder / "runs" / "teacher" / "metrics.jsonl").read_bytes()
    (folder / "pipeline.yaml").write_text(PIPELINE.replace("data/MISSPELT", "data/48"))
    again = user.launch("slurm", "pipeline.yaml")
    assert "data: done (2 of 2)\n" in again
    assert "teacher: done\n" in again
    user.wait_until_idle()
    assert set(user.states(code=0).values()) == {"done 1/1", "done 2/2"}, user.launch(
        "status", "runs/pipeline", code=1
    )
    assert {path: path.stat().st_mtime_ns for path in before} == before, "the data was not prepared again"
    assert (folder / "runs" / "teacher" / "metrics.jsonl").read_bytes() == trained
    assert [row["step"] for row in read_rows(folder / "runs" / "prune", "train")] == list(range(1, 11))
    assert (folder / "runs" / "release" / "model.safetensors").is_file()
    for seed in (1, 2):
        tuned = json.loads((folder / "runs" / f"task {seed}" / "metrics.json").read_text())
        assert (tuned["masks"], tuned["nonzero_outside_masks"]) == ("file", 0)
    assert user.launch("slurm", "pipeline.yaml").count(": done") == 6
