"""Ranks of a training that do not fit together end before its first step, and say who and what."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sparse_pretrain.config.load import load_recipe
from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.errors import UserError
from sparse_pretrain.preflight.start import SWITCH, is_wanted, own_mistakes, preflight
from sparse_pretrain.training.world import World, free_port
from tests.distributed import ROOT, run_distributed
from tests.preflight.faults import fake_package
from tests.tiny import tiny_prepared

# What a preflight of two ranks may cost at most.
SECONDS = 0.5


def tiny_recipe(folder: Path) -> TrainRecipe:
    return load_recipe(
        "train-tiny", [f"data.path={folder / 'data'}", f"output={folder / 'run'}"], TrainRecipe
    )


def timed_preflight(world: World, folder: Path) -> tuple[list[str], float]:
    recipe = tiny_recipe(folder)
    world.barrier()
    started = time.perf_counter()
    return preflight(recipe, world), time.perf_counter() - started


def test_ranks_that_fit_together_lose_no_time_and_leave_nothing_behind(tmp_path: Path) -> None:
    tiny_prepared(tmp_path / "data")
    for warnings, seconds in run_distributed(timed_preflight, 2, tmp_path):
        assert warnings == []
        assert seconds < SECONDS
    assert list((tmp_path / "run").iterdir()) == []


def mistakes(world: World, folder: Path, said: dict[int, str]) -> str:
    with pytest.raises(UserError) as raised:
        preflight(tiny_recipe(folder), world, said.get(world.rank))
    return str(raised.value)


def test_a_mistake_of_all_ranks_is_one_line_and_that_of_one_rank_names_it(tmp_path: Path) -> None:
    everywhere = run_distributed(mistakes, 2, tmp_path, {0: "data.path: missing", 1: "data.path: missing"})
    assert everywhere == ["data.path: missing"] * 2
    assert not (tmp_path / "run").exists()
    first, second = run_distributed(mistakes, 2, tmp_path, {1: "data.path: missing"})
    assert first == second
    assert first.startswith("wrong: start: rank 1 on ")
    assert ": data.path: missing; " in first


def test_a_mistake_that_a_finding_explains_is_not_told_twice() -> None:
    from sparse_pretrain.preflight.findings import unwritable

    ranks = [("a", None), ("b", "output: cannot write")]
    assert own_mistakes(ranks, [unwritable(Path("/run"), "Read-only file system", 1, "b")]) == []
    assert [finding.rank for finding in own_mistakes(ranks, [])] == [1]


@pytest.mark.parametrize(("value", "wanted"), [("off", False), ("0", False), (" No ", False), ("1", True)])
def test_the_comparison_can_be_switched_off(value: str, wanted: bool) -> None:
    assert is_wanted({SWITCH: value}) is wanted
    assert is_wanted({})


def start_ranks(
    folders: dict[int, Path], differences: dict[int, dict[str, str]], *overrides: str
) -> list[tuple[int, str]]:
    """Train on two ranks, each in its folder and some with other variables; return exit codes and output."""
    port = str(free_port())
    started = []
    for rank in range(2):
        environment: dict[str, Any] = {
            **os.environ,
            **{"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": str(ROOT)},
            **differences.get(rank, {}),
        }
        command = [sys.executable, "-m", "sparse_pretrain", "train", "train-tiny", *overrides]
        started.append(
            subprocess.Popen(
                command,
                cwd=folders[rank],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        printed = [process.communicate(timeout=120)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, text) for process, text in zip(started, printed, strict=True)]


def files_in(folder: Path) -> list[Path]:
    """Whoever of two ranks leaves first cannot remove the folders: they may stay."""
    return [path for path in folder.rglob("*") if not path.is_dir()]


@pytest.mark.slow
def test_another_version_on_one_rank_ends_the_start_and_leaves_nothing_written(tmp_path: Path) -> None:
    tiny_prepared(tmp_path / "data")
    fake = fake_package(tmp_path / "fake", "transformers", "0.1")
    other = {1: {"PYTHONPATH": f"{fake}:{ROOT}"}}
    (first, printed), (second, silent) = start_ranks(
        {0: tmp_path, 1: tmp_path}, other, "data.path=data", "output=run"
    )
    assert (first, second) == (2, 2), printed
    (line,) = printed.splitlines()
    assert line.startswith("wrong: versions: rank 1 on ")
    assert ": transformers 0.1, most ranks have " in line
    assert silent == ""
    assert files_in(tmp_path / "run") == []


@pytest.mark.slow
def test_a_rank_that_finds_no_data_takes_the_others_with_it_at_once(tmp_path: Path) -> None:
    """Alone it would leave them in the rendezvous until a time-out, with nothing said on rank 0."""
    tiny_prepared(tmp_path / "data")
    (tmp_path / "elsewhere").mkdir()
    folders = {0: tmp_path, 1: tmp_path / "elsewhere"}
    (first, printed), (second, _) = start_ranks(folders, {}, "data.path=data", f"output={tmp_path / 'run'}")
    assert (first, second) == (2, 2), printed
    (line,) = printed.splitlines()
    assert line.startswith("wrong: start: rank 1 on ")
    assert ": data: no manifest.json: " in line
    assert files_in(tmp_path / "run") == []
