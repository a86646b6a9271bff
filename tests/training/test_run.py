"""The real command on two ranks: a quiet console, a whole run folder, stop and continue."""

import json
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from sparse_pretrain.config.load import load_recipe
from sparse_pretrain.config.recipe import TrainRecipe
from tests.launched import launch_tiny
from tests.tiny import read_rows, tiny_prepared

SECRET = "hf_this-must-stay-in-the-environment"
STOPPED = 75
# What libraries print when they are loaded and while they run.
NOISE = re.compile(r"warning|deepspeed|deprecat|\[INFO\]|traceback|gloo|\.py:\d+", re.IGNORECASE)


def start(folder: Path, *overrides: str, nproc: int = 2) -> subprocess.Popen[str]:
    """Start the tiny recipe in `folder`, output in `folder/run`."""
    secrets = {"HF_TOKEN": SECRET, "MY_PASSWORD": SECRET}
    compiled = {"TORCH_EXTENSIONS_DIR": str(folder / "compiled")}
    return launch_tiny(folder, "run", nproc, *overrides, environment=secrets | compiled)


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for the end; return exit code and everything that was printed, which must be ours."""
    try:
        printed, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert not NOISE.search(printed), printed
    return process.returncode, printed


def steps_of(run: Path) -> list[int]:
    return [row["step"] for row in read_rows(run, "train")]


@pytest.mark.slow
def test_a_run_on_two_ranks_is_quiet_and_leaves_a_whole_folder(tmp_path: Path) -> None:
    tiny_prepared(tmp_path / "data")
    code, printed = end(start(tmp_path))
    assert code == 0, printed
    lines = printed.splitlines()
    assert all(line.startswith("prune step ") for line in lines), printed
    assert lines[-1].startswith("prune step 10: saved run/checkpoints/step-0000010 (")

    assert not (tmp_path / "compiled").exists(), "nobody needs a compiler to train on CPUs"

    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} == {
        "recipe.yaml",
        "provenance.json",
        "progress",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "logs",
        "plots",
    }
    assert {path.name for path in (run / "logs").iterdir()} == {"rank-0.log", "rank-1.log"}
    checkpoints = {path.name for path in (run / "checkpoints").iterdir()}
    assert checkpoints == {"step-0000005", "step-0000010", "latest", ".owner.json", ".lock"}
    assert (run / "checkpoints" / "latest").read_text() == "step-0000010\n"
    assert list((run / "tensorboard").glob("events.*"))
    assert all(path.stat().st_size > 5_000 for path in (run / "plots").glob("*.png"))
    assert len(list((run / "plots").glob("*.png"))) >= 3
    asked = load_recipe("train-tiny", ["data.path=data", "output=run"], TrainRecipe)
    assert load_recipe(run / "recipe.yaml", [], TrainRecipe) == asked
    check_provenance(json.loads((run / "provenance.json").read_text()))
    check_metrics(run)
    assert not any(SECRET in text(path) for path in run.rglob("*") if path.is_file())

    code, printed = end(start(tmp_path))
    assert code == 0
    assert printed == (
        "prune: continuing from run/checkpoints/step-0000010\nprune: already finished at step 10: run\n"
    )
    assert steps_of(run) == list(range(1, 11))


def check_provenance(provenance: dict[str, Any]) -> None:
    """Versions, command, data and hardware; of the environment nothing."""
    assert set(provenance) == {
        *("started", "command", "versions", "git_commit", "data_fingerprint", "world_size", "precision"),
        "hardware",
    }
    assert provenance["command"][1:] == ["train", "train-tiny", "data.path=data", "output=run"]
    assert {"torch", "deepspeed", "transformers", "sparse-pretrain"} <= provenance["versions"].keys()
    assert provenance["world_size"] == 2


def check_metrics(run: Path) -> None:
    """Every step once, the masks' way to the target, two held-out measurements."""
    rows = read_rows(run, "train")
    assert [row["step"] for row in rows] == list(range(1, 11))
    assert all(
        {"loss", "mlm_loss", "nsp_loss", "learning_rate", "tokens_per_second"} <= row.keys() for row in rows
    )
    updates = read_rows(run, "masks")
    assert [row["step"] for row in updates] == [0, 2, 4, 6, 8]
    assert updates[-1]["frozen"]
    assert rows[-1]["sparsity"] == pytest.approx(0.8, abs=1e-3)
    assert [row["step"] for row in read_rows(run, "evaluation")] == [5, 10]
    saves = read_rows(run, "checkpoint")
    assert [row["step"] for row in saves] == [5, 10]
    assert all(row["bytes"] > 10_000 and 0 <= row["waited"] <= row["seconds"] for row in saves)


def steps_begun(run: Path) -> int:
    """Count the steps of a run that is writing, perhaps in the middle of a line."""
    path = run / "metrics.jsonl"
    return text(path).count('"kind": "train"') if path.is_file() else 0


def text(path: Path) -> str:
    return path.read_bytes().decode(errors="replace")


@pytest.mark.slow
def test_a_stopped_run_saves_and_the_same_command_finishes_it(tmp_path: Path) -> None:
    tiny_prepared(tmp_path / "data")
    # Enough steps to be stopped in the middle; checkpoints only where it is stopped and at the end.
    long = ("steps=200", "pruning.ramp_end=100", "pruning.end=150", "pruning.frequency=10")
    settings = (*long, "checkpoint.every=1000", "evaluation.every=1000", "logging.histograms_every=0")
    run = tmp_path / "run"
    process = start(tmp_path, *settings)
    deadline = time.monotonic() + 90
    while steps_begun(run) < 20:
        assert process.poll() is None, end(process)
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    code, printed = end(process)
    assert code == STOPPED, printed
    stopped_at = steps_of(run)[-1]
    assert 20 <= stopped_at < 200
    assert re.search(
        rf"prune: stopped at step {stopped_at} and saved \(SIGTERM, [\d.]+ s ago\); run the same command",
        printed,
    )
    assert [path.name for path in (run / "checkpoints").glob("step-*")] == [f"step-{stopped_at:07d}"]

    code, printed = end(start(tmp_path, *settings))
    assert code == 0, printed
    assert f"prune: continuing from run/checkpoints/step-{stopped_at:07d}" in printed
    assert steps_of(run) == list(range(1, 201))
    assert read_rows(run, "train")[-1]["sparsity"] == pytest.approx(0.8, abs=1e-3)


@pytest.mark.slow
def test_a_failure_is_told_with_the_place_of_its_traceback(tmp_path: Path) -> None:
    """Square brackets in a message or path are text, not markup."""
    tiny_prepared(tmp_path / "data")
    diverges = ("optimizer.learning_rate=1e30", "guard.skipped_in_a_row=3")
    process = start(tmp_path, "output=run[/b]", *diverges, nproc=1)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 1, printed
    log = "run[/b]/logs/rank-0.log"
    (told,) = (line for line in printed.splitlines() if line.startswith("rank 0: "))
    assert re.match(
        r"rank 0: TrainingDivergedError: step \d+: \d+ steps in a row without a usable update", told
    )
    assert "last good checkpoint: " in told
    assert told.endswith(f"the traceback is in {log}")
    assert "Traceback (most recent call last)" in (tmp_path / log).read_text()
