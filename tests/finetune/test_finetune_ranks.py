"""The command on several ranks: DDP and ZeRO 1, 2, 3 train what one process trains, and leave one folder."""

import contextlib
import io
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from sparse_pretrain import cli
from sparse_pretrain.config.load import load_recipe, to_yaml
from sparse_pretrain.errors import FailedError, UserError
from sparse_pretrain.files import read_json
from sparse_pretrain.finetune import ranks
from sparse_pretrain.finetune.evaluate import evaluate
from sparse_pretrain.finetune.progress import ProgressReport
from sparse_pretrain.finetune.ranks import Alone, DealtBatches, rows_of_a_rank, together
from sparse_pretrain.finetune.recipe import FinetuneRecipe
from sparse_pretrain.finetune.result import FinetuneResult
from sparse_pretrain.finetune.teacher import teacher_recipe
from sparse_pretrain.finetune.train import finetune
from sparse_pretrain.finetune.zero import USE_DEEPSPEED
from sparse_pretrain.pruning.masks import MASK_FILE, MaskSet
from sparse_pretrain.telemetry.metrics import read_rows
from sparse_pretrain.training.world import World
from tests.distributed import run_distributed
from tests.finetune.models import pairs, recipe
from tests.finetune.rows import TASKS, tagged, write_rows

QUIET = Console(quiet=True)
SETTINGS: dict[str, Any] = {"epochs": 1, "weight_decay": 0.1}
# By name: the task, and what is set on top of it. 87 rows in batches of 16: shares of the last batch are unequal.
CASES: dict[str, tuple[str, list[str]]] = {
    "zero-1": ("sentences", ["training.zero_stage=1"]),
    # Behind a run under DeepSpeed, of which nothing may be left in the process.
    "ddp": ("sentences", []),
    "tags": ("tags", []),
    "int8": ("pairs", ["quantization.calibration_steps=3"]),
    "zero-2": ("sentences", ["training.zero_stage=2"]),
    "zero-3": ("sentences", ["training.zero_stage=3", "training.epochs=2", "distillation.teacher=auto"]),
}
FEW = ["task.limit_train=40", "task.limit_validation=20"]


@pytest.fixture(scope="module")
def inputs(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe file for each task."""
    inputs = tmp_path_factory.mktemp("recipes")
    generator = random.Random(0)
    rows = write_rows(inputs / "tags.jsonl", [tagged(generator) for _ in range(150)])
    tasks = {
        "sentences": None,
        "pairs": pairs(folder),
        "tags": TASKS["tokens"][1] | {"train": rows, "labels": []},
    }
    for name, task in tasks.items():
        settings = recipe(folder, inputs / "unused", task={"limit_train": 87} | (task or {}), **SETTINGS)
        (inputs / f"{name}.yaml").write_text(to_yaml(settings))
    return inputs


def commands(world: World, cases: list[list[str]]) -> list[tuple[int, str, str]]:
    """Run `sparse-pretrain` with each list of arguments, as one rank; return exit codes and what was printed."""
    # The next command joins the same processes.
    ranks.leave_ranks = lambda: None
    done = []
    for arguments in cases:
        sys.argv = ["sparse-pretrain", *arguments]
        out, err = io.StringIO(), io.StringIO()
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as end,
        ):
            cli.main()
        assert USE_DEEPSPEED not in os.environ, "the next run would be under DeepSpeed, too"
        done.append((int(end.value.code or 0), out.getvalue(), err.getvalue()))
    return done


def losses(output: Path) -> list[float]:
    return [row["loss"] for row in read_rows(output / "metrics.jsonl") if "loss" in row]


def check_folder(output: Path) -> dict[str, Any]:
    """What a run leaves is whole: it answers as training measured, every zero in its place."""
    result: dict[str, Any] = read_json(output / "metrics.json")
    again = evaluate(output, precision="fp32")
    assert again["metrics"] == pytest.approx(result["metrics"]["validation"], abs=1e-6)
    assert (result["nonzero_outside_masks"], again["nonzero_outside_masks"]) == (0, 0)
    masks = MaskSet.load(output / "model" / MASK_FILE)
    assert masks.total_sparsity() == pytest.approx(result["sparsity"]) == pytest.approx(0.85, abs=1e-3)
    weights = load_file(output / "model" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert all(not weights[name][~mask].any() for name, mask in masks.items())
    return result


@pytest.mark.slow
def test_two_ranks_train_what_one_process_trains_at_every_stage(
    inputs: Path, folder: Path, tmp_path: Path
) -> None:
    dense = f"distillation.dense={folder / 'dense'}"
    cases = {
        name: [f"{task}.yaml", *settings, *([dense] if "distillation.teacher=auto" in settings else [])]
        for name, (task, settings) in CASES.items()
    }
    seeds = ["seeds=[1,2]", "training.zero_stage=3", "training.precision=bf16", "--json", *FEW]
    orders = cases | {"seeds": ["pairs.yaml", *seeds], "no": ["pairs.yaml", "task.label=scor"]}
    first, second = run_distributed(
        commands,
        2,
        [
            ["finetune", str(inputs / file), f"output={tmp_path / name}", *settings]
            for name, (file, *settings) in orders.items()
        ],
    )
    *good, mistaken = first
    assert [code for code, _, _ in good] == [0] * len(good)
    assert {(out, err) for _, out, err in second} == {("", "")}, "only the first rank talks"
    assert [code for code, _, _ in second] == [0] * len(good) + [2]
    assert (mistaken[0], len(mistaken[2].splitlines())) == (2, 1)
    assert "task.label = 'scor'" in mistaken[2]
    assert not (tmp_path / "no").exists()
    alone: dict[str, FinetuneResult] = {}
    for name, (file, *settings) in cases.items():
        result = check_folder(tmp_path / name)
        plain = [file, *(one for one in settings if "zero_stage" not in one)]
        key = " ".join(plain)
        if key not in alone:
            overrides = [f"output={tmp_path / f'{name}-alone'}", *plain[1:]]
            alone[key] = finetune(load_recipe(inputs / file, overrides, FinetuneRecipe), QUIET)
        # Padding is observed too, and each rank pads to its own longest row: int8 ranges are alike, not the same.
        tolerance = 2e-2 if name == "int8" else 1e-5
        assert losses(tmp_path / name) == pytest.approx(losses(alone[key].output), rel=tolerance)
        assert result["score"] == pytest.approx(alone[key].score, abs=5e-3)
        assert (result["int8_layers"], result["teacher"]) == (alone[key].int8_layers, alone[key].teacher)
    assert read_json(tmp_path / "ddp" / "provenance.json")["world_size"] == 2
    summary = json.loads(good[-1][1])
    assert (summary["finished"], summary["points"][0]["nonzero_outside_masks"]) == (1, 0)
    assert len(list((tmp_path / "teachers").iterdir())) == 1, "trained by both ranks, found by one process"
    assert evaluate(tmp_path / "seeds" / "seed-1")["nonzero_outside_masks"] == 0


def interrupted(world: World, file: Path, folder: Path, settings: list[str]) -> list[str]:
    """Run through; then again, cut off behind the first epoch, and given the same command once more."""

    def stop(self: ProgressReport, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == state.max_steps // 2 + 1:
            raise KeyboardInterrupt

    def run(output: str) -> str:
        console = Console(record=True, width=200, file=io.StringIO())
        overrides = [f"output={folder / output}", "training.epochs=2", *FEW, *settings]
        finetune(load_recipe(file, overrides, FinetuneRecipe), console)
        return console.export_text()

    run("whole")
    usual = ProgressReport.on_step_end
    ProgressReport.on_step_end = stop
    with pytest.raises(KeyboardInterrupt):
        run("part")
    ProgressReport.on_step_end = usual
    return [run("part")]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [["training.dropout=0.1"], ["training.zero_stage=3"]], ids=["ddp", "zero-3"]
)
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    settings: list[str], inputs: Path, tmp_path: Path
) -> None:
    (shown,), (silent,) = run_distributed(interrupted, 2, inputs / "sentences.yaml", tmp_path, settings)
    assert "going on behind the last whole epoch" in shown
    assert silent == ""
    whole, part = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "part"))
    assert all(torch.equal(whole[name], part[name]) for name in whole)
    assert losses(tmp_path / "whole") == losses(tmp_path / "part")
    assert not (tmp_path / "part" / "unfinished").exists()


def fail_on_first(world: World, file: Path, folder: Path) -> None:
    def full(self: ProgressReport, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if world.is_first and state.global_step == 3:
            raise OSError("disk full")

    ProgressReport.on_step_end = full
    finetune(load_recipe(file, [f"output={folder / 'run'}"], FinetuneRecipe), QUIET)


@pytest.mark.slow
def test_no_rank_waits_for_one_that_failed(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"(?s)rank 0 exit 1.*disk full.*rank 1 exit 1"):
        run_distributed(fail_on_first, 2, inputs / "sentences.yaml", tmp_path, timeout=60)


def one_rank(world: World, file: Path, output: Path) -> float:
    overrides = [f"output={output}", "training.zero_stage=3", *FEW]
    return finetune(load_recipe(file, overrides, FinetuneRecipe), QUIET).score


@pytest.mark.slow
def test_zero_on_one_rank_is_the_same_run(inputs: Path, tmp_path: Path) -> None:
    (score,) = run_distributed(one_rank, 1, inputs / "pairs.yaml", tmp_path / "zero")
    settings = load_recipe(inputs / "pairs.yaml", [f"output={tmp_path / 'plain'}", *FEW], FinetuneRecipe)
    assert score == pytest.approx(finetune(settings, QUIET).score, abs=1e-5)
    assert losses(tmp_path / "zero") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)


@pytest.mark.slow
def test_as_users_start_it(inputs: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sparse_pretrain", "launch", "local", "--nproc", "2"]
    task = [str(inputs / "sentences.yaml"), f"output={tmp_path / 'run'}", "training.zero_stage=1", *FEW]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *task], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("masks locked") == 1
    assert done.stderr == ""
    assert read_json(tmp_path / "run" / "provenance.json")["world_size"] == 2
    check_folder(tmp_path / "run")


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_batch_that_does_not_divide_is_one_line_and_exit_code_2(
    rank: str,
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    task = [str(inputs / "sentences.yaml"), f"output={tmp_path / 'run'}", "training.batch_size=15"]
    monkeypatch.setattr(sys, "argv", ["sparse-pretrain", "finetune", *task])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    line = "training.batch_size = 15: does not divide among 2 ranks; use 14 or 16\n"
    assert capfd.readouterr().err == (line if rank == "0" else "")
    assert not (tmp_path / "run").exists()


def test_batches_are_dealt_out_row_by_row() -> None:
    def dealt(rows: int, size: int) -> list[list[list[int]]]:
        order: Any = list(range(rows))
        worlds = []
        for rank in range(size):
            world = Alone()
            object.__setattr__(world, "rank", rank)
            object.__setattr__(world, "size", size)
            worlds.append(world)
        return [list(DealtBatches(order, 4, world)) for world in worlds]

    assert dealt(8, 2) == [[[0, 2], [4, 6]], [[1, 3], [5, 7]]]
    assert dealt(7, 2) == [[[0, 2], [4, 6]], [[1, 3], [5]]]
    assert dealt(5, 4) == [[[0], [4]], [[1], [4]], [[2], [4]], [[3], [4]]]
    assert rows_of_a_rank(32, 4) == 8
    with pytest.raises(UserError, match=r"batch_size = 2: .* among 4 ranks; use 4$"):
        rows_of_a_rank(2, 4)


def test_what_another_rank_found_ends_this_one_too() -> None:
    class Others(Alone):
        def gather(self, value: Any) -> list[Any]:
            return [value, said]

    said: Any = None
    assert together(Others(), lambda: 7) == 7
    said = (True, "a.csv: no such file")
    with pytest.raises(UserError, match=r"a\.csv: no such file"):
        together(Others(), lambda: 7)
    said = (False, "out of memory")
    with pytest.raises(FailedError, match="rank 1 failed: out of memory"):
        together(Others(), lambda: 7)


def test_a_teacher_is_the_same_whatever_shares_its_memory(folder: Path, tmp_path: Path) -> None:
    sections = {"distillation": {"teacher": "auto", "dense": str(folder / "dense")}}
    one, other = (
        recipe(folder, tmp_path / "run", sections=sections, zero_stage=stage) for stage in (None, 3)
    )
    assert teacher_recipe(one, "abc").output == teacher_recipe(other, "abc").output
