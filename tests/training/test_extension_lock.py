"""A lock that a killed rank left behind must not stop any later start."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.training.extension_lock import extensions_alone, extensions_folder, own_folder
from sparse_pretrain.training.inputs import open_inputs
from sparse_pretrain.training.world import World
from tests.distributed import ROOT, run_distributed
from tests.tiny import tiny_prepared, tiny_recipe

# Holds the folder, and leaves a lock file as a build does; the output says when.
HOLDER = """
import time
from sparse_pretrain.training.extension_lock import extensions_alone, extensions_folder
with extensions_alone():
    (extensions_folder() / "op").mkdir(exist_ok=True)
    (extensions_folder() / "op" / "lock").touch()
    print("held", flush=True)
    time.sleep(float({seconds}))
    (extensions_folder() / "op" / "lock").unlink()
"""


@pytest.fixture
def ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Our own folder of extensions, empty."""
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    own_folder().mkdir(parents=True)
    return own_folder()


@pytest.fixture
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of extensions that the user chose."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    return tmp_path


def lock_in(folder: Path, age: float) -> Path:
    path = folder / "op" / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def seconds_alone(**arguments: float) -> float:
    """Return how long it took to get the folder."""
    started = time.monotonic()
    with extensions_alone(**arguments):
        return time.monotonic() - started


def holder(seconds: float) -> subprocess.Popen[str]:
    """Start a process that holds the folder for some seconds; return when it does."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER.format(seconds=seconds)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_lock_in_our_own_folder_is_nobodys(ours: Path) -> None:
    lock = lock_in(ours, age=0)
    assert seconds_alone() < 0.3
    assert not lock.exists()


def test_our_own_folder_is_known_when_an_earlier_process_has_set_it(
    ours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Joining a world sets the variable that torch reads, for all processes that follow."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(ours))
    lock_in(ours, age=0)
    assert seconds_alone() < 0.3


def test_two_processes_take_turns(ours: Path) -> None:
    """The second does not touch the lock file of the first, which works."""
    with holder(seconds=1) as first:
        assert 0.5 < seconds_alone() < 10
        assert first.wait(10) == 0


def test_a_process_killed_in_the_middle_frees_the_folder(ours: Path) -> None:
    with holder(seconds=100) as killed:
        killed.send_signal(signal.SIGKILL)
        killed.wait(10)
    assert (ours / "op" / "lock").exists()
    assert seconds_alone() < 0.3
    assert not (ours / "op" / "lock").exists()


def test_a_process_that_never_gives_the_folder_back_is_not_waited_for_for_ever(ours: Path) -> None:
    with holder(seconds=100) as hangs:
        try:
            assert 0.4 < seconds_alone(stale_after=0.5) < 10
        finally:
            hangs.kill()


def test_an_old_lock_in_the_users_folder_is_removed(users: Path) -> None:
    lock = lock_in(users, age=601)
    assert seconds_alone() < 0.3
    assert not lock.exists()


def test_a_young_lock_in_the_users_folder_is_waited_for_until_its_owner_is_done(users: Path) -> None:
    lock = lock_in(users, age=0)
    threading.Timer(0.5, lock.unlink).start()
    assert 0.3 < seconds_alone() < 5


def test_a_lock_in_the_users_folder_that_grows_old_meanwhile_is_removed(users: Path) -> None:
    lock = lock_in(users, age=0)
    assert 0.3 < seconds_alone(stale_after=0.5) < 5
    assert not lock.exists()


def test_every_environment_builds_in_a_folder_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    here = extensions_folder()
    monkeypatch.setattr("sys.prefix", "/somewhere/else/.venv")
    assert here.parent == extensions_folder().parent == tmp_path / "torch_extensions"
    assert here != extensions_folder()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "/given")
    assert extensions_folder() == Path("/given")


def build(_: World) -> None:
    """Compile the communication, or find it compiled."""
    from sparse_pretrain.training.engine import load_communication

    load_communication()


def start(world: World, values: dict[str, Any]) -> dict[str, Any]:
    """Build a run's engine, then another one in front of a lock file that was made in between."""
    import deepspeed

    from sparse_pretrain.training.build import build_trainer

    recipe = TrainRecipe.model_validate(values)
    inputs = open_inputs(recipe)
    lock = extensions_folder() / "deepspeed_shm_comm" / "lock"
    started = time.monotonic()
    build_trainer(recipe, inputs, world, "fp32", [])
    seconds, cleared = time.monotonic() - started, not lock.exists()
    lock.touch()
    build_trainer(recipe, inputs, world, "fp32", [])
    loaded = Path(deepspeed.comm.comm.cdb.shm_comm_op.__file__)
    return {"seconds": seconds, "cleared": cleared, "untouched": lock.exists(), "loaded": loaded}


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Our own folder, a copy of the one where this environment has built; built first if it has not yet."""
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    original = own_folder()
    if not (original / "deepspeed_shm_comm" / "deepspeed_shm_comm.so").exists():
        run_distributed(build, 1)
    with extensions_alone():
        shutil.copytree(original, tmp_path / "torch_extensions" / original.name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return own_folder()


@pytest.mark.skipif(torch.cuda.is_available(), reason="GPUs have NCCL: DeepSpeed builds nothing there")
def test_a_rank_starts_at_once_in_a_folder_that_a_killed_rank_left_locked(
    built: Path, tmp_path: Path
) -> None:
    """What is loaded stays loaded: a lock file that appears later stops nobody either."""
    (built / "deepspeed_shm_comm" / "lock").touch()
    recipe = tiny_recipe(tiny_prepared(tmp_path / "data"), tmp_path / "run").model_dump(mode="json")
    (started,) = run_distributed(start, 1, recipe, timeout=120)
    assert started["seconds"] < 30
    assert started["cleared"]
    assert started["untouched"]
    assert started["loaded"].is_relative_to(built)
