"""A folder that appears whole or not at all."""

from pathlib import Path

import pytest

from data_prep.staging import discard, locked, staging_folder
from sparse_pretrain.errors import UserError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_success_renames(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "out"
    with staging_folder(output) as staging:
        (staging / "file").write_text("x")
        assert not output.exists()
    assert names(output) == ["file"]
    assert names(output.parent) == ["out"]


def test_failure_leaves_the_old_folder(tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "old").write_text("x")

    def fail() -> None:
        with staging_folder(output) as staging:
            (staging / "new").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert names(output) == ["old"]
    assert names(tmp_path) == ["out"]


def test_success_replaces_the_old_folder(tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "old").write_text("x")
    with staging_folder(output) as staging:
        (staging / "new").write_text("x")
    assert names(output) == ["new"]
    assert names(tmp_path) == ["out"]


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".out.partial"
    (left / "train").mkdir(parents=True)
    (left / "train" / "shard-00000.arrow").write_text("half")
    with staging_folder(tmp_path / "out") as staging:
        assert names(staging) == []
    assert names(tmp_path) == ["out"]


def test_two_runs_for_one_output(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with locked(output):
        with pytest.raises(UserError, match="another process is preparing it"), locked(output):
            pass
        with pytest.raises(UserError, match="another process is preparing it"), locked(output):
            pass
    with locked(output):
        assert names(tmp_path) == [".out.lock"]
    assert names(tmp_path) == []


def test_the_lock_of_a_killed_run_holds_nobody(tmp_path: Path) -> None:
    (tmp_path / ".out.lock").touch()
    with locked(tmp_path / "out"):
        pass
    assert names(tmp_path) == []


def test_the_folder_is_whole_when_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed right after the new name must not leave anything of its own inside."""
    seen: list[list[str]] = []

    def look(folder: Path) -> None:
        if (tmp_path / "out").exists():
            seen.append(names(tmp_path / "out"))

    monkeypatch.setattr("data_prep.staging.fsync_folder", look)
    with locked(tmp_path / "out"), staging_folder(tmp_path / "out") as staging:
        (staging / "file").write_text("x")
    assert seen == [["file"]]


def test_a_discarded_folder_is_never_half_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while it deletes, a run must not leave markers of tasks without their files."""
    folder = tmp_path / ".out.work"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "marker").touch()
    with monkeypatch.context() as patch:
        patch.setattr("data_prep.staging.shutil.rmtree", lambda *_, **__: None)
        discard(folder)
    assert names(tmp_path) == [".out.work.discarded"]
    discard(folder)
    assert names(tmp_path) == []


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written"), locked(tmp_path / "file" / "out"):
        pass
    with pytest.raises(UserError, match="cannot be written"), staging_folder(tmp_path / "file" / "out"):
        pass
