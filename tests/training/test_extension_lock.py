"""A lock that a killed rank left behind must not stop every later run."""

import os
import threading
import time
from pathlib import Path

import pytest

from sparse_pretrain.training.extension_lock import clear_stale_locks, extensions_folder


def lock_in(folder: Path, age: float) -> Path:
    path = folder / "py311_cpu" / "deepspeed_shm_comm" / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def test_an_old_lock_is_removed(tmp_path: Path) -> None:
    lock = lock_in(tmp_path, age=601)
    clear_stale_locks(tmp_path)
    assert not lock.exists()


def test_a_young_lock_is_waited_for_until_its_owner_is_done(tmp_path: Path) -> None:
    lock = lock_in(tmp_path, age=0)
    threading.Timer(0.5, lock.unlink).start()
    started = time.monotonic()
    clear_stale_locks(tmp_path)
    assert 0.3 < time.monotonic() - started < 5


def test_a_lock_that_grows_old_meanwhile_is_removed(tmp_path: Path) -> None:
    lock = lock_in(tmp_path, age=0)
    clear_stale_locks(tmp_path, stale_after=0.5)
    assert not lock.exists()


def test_nothing_there_costs_nothing(tmp_path: Path) -> None:
    clear_stale_locks(tmp_path)
    clear_stale_locks(tmp_path / "missing")
    assert list(tmp_path.iterdir()) == []


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
