"""A save becomes a checkpoint by one rename or not at all, wherever it is stopped."""

import builtins
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sparse_pretrain.checkpoint.fence import claim
from sparse_pretrain.checkpoint.integrity import newest_whole, problem_with, read_manifest
from sparse_pretrain.checkpoint.layout import (
    LATEST,
    replaced_folder,
    saved_steps,
    staging_folder,
    step_folder,
)
from sparse_pretrain.checkpoint.staging import (
    NotEnoughSpaceError,
    clear_leftovers,
    commit,
    delete_old,
    describe_files,
    discard_staging,
    prepare_staging,
)
from sparse_pretrain.files import write_text
from tests.checkpoint.saves import RANKS, Alone, quiet, save, write_save

# Every way in which these files change the disk.
CHANGES = ("mkdir", "rename", "replace", "unlink", "rmdir", "fsync")


class KilledError(BaseException):
    """Nothing after this happens, as when the process is killed."""


@contextmanager
def killed_at(call: int) -> Iterator[SimpleNamespace]:
    """Let `call` changes of the disk pass; that one and all after it don't happen any more."""
    seen = SimpleNamespace(count=0)
    reals: dict[str, Any] = {name: getattr(os, name) for name in CHANGES}
    real_open = io.open

    def count() -> None:
        seen.count += 1
        if seen.count > call:
            raise KilledError

    def guard(real: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*arguments: Any, **named: Any) -> Any:
            count()
            return real(*arguments, **named)

        return guarded

    def guarded_open(file: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        if set(mode) & set("wax+"):
            count()
        return real_open(file, mode, *arguments, **named)

    try:
        for name, real in reals.items():
            setattr(os, name, guard(real))
        io.open = guarded_open
        yield seen
    finally:
        for name, real in reals.items():
            setattr(os, name, real)
        io.open = real_open
        assert builtins.open is real_open


def survive(checkpoints: Path) -> tuple[Path | None, bytes]:
    """Do what the next start does; return the checkpoint it goes on from, and what a shard of it holds."""
    claim(checkpoints)
    clear_leftovers(checkpoints)
    found, broken = newest_whole(checkpoints, Alone(), quiet)
    assert broken == {}
    assert not [path.name for path in checkpoints.iterdir() if path.name.startswith(".step-")]
    return found, b"" if found is None else (found / "weights" / "rank-00000.safetensors").read_bytes()


def stop_everywhere(
    folder: Path, prepare: Callable[[Path], object], action: Callable[[Path], object]
) -> list[Path]:
    """Do an action again and again from the same beginning, stopped one change of the disk later each time."""
    ends: list[Path] = []
    while True:
        checkpoints = folder / str(len(ends))
        prepare(checkpoints)
        with killed_at(len(ends)) as seen:
            try:
                action(checkpoints)
            except KilledError:
                ends.append(checkpoints)
                continue
        assert seen.count == len(ends)
        return [*ends, checkpoints]


@pytest.mark.slow
def test_a_save_that_is_killed_anywhere_leaves_the_last_checkpoint_or_the_new_one(tmp_path: Path) -> None:
    ends = stop_everywhere(tmp_path, lambda folder: save(folder, 10), lambda folder: save(folder, 20))
    assert len(ends) > 20
    steps = []
    for checkpoints in ends:
        found, _ = survive(checkpoints)
        assert found is not None
        steps.append(int(found.name.removeprefix("step-")))
        # The next save works.
        assert problem_with(save(checkpoints, 20)) is None
        assert problem_with(save(checkpoints, 30)) is None
        assert saved_steps(checkpoints) == [10, 20, 30]
        assert (checkpoints / LATEST).read_text() == "step-0000030\n"
    # Before the rename the old one, after it the new one.
    assert steps == sorted(steps)
    assert set(steps) == {10, 20}


def test_the_first_save_that_is_killed_leaves_none_or_the_new_one(tmp_path: Path) -> None:
    ends = stop_everywhere(tmp_path, lambda folder: folder.mkdir(), lambda folder: save(folder, 20))
    found = [survive(checkpoints)[0] for checkpoints in ends]
    assert found[0] is None
    assert found[-1] == step_folder(ends[-1], 20)


def test_replacing_a_step_that_is_killed_anywhere_leaves_one_of_the_two(tmp_path: Path) -> None:
    ends = stop_everywhere(
        tmp_path, lambda folder: save(folder, 10, b"old"), lambda folder: save(folder, 10, b"new")
    )
    contents = [survive(checkpoints) for checkpoints in ends]
    assert {content for _, content in contents} == {b"old", b"new"}
    assert [content for _, content in contents] == sorted((c for _, c in contents), reverse=True)
    assert all(found is not None for found, _ in contents)


def test_clearing_up_may_be_killed_anywhere_too(tmp_path: Path) -> None:
    """A half done replacement and a half done save, cleared by a start that is killed itself."""

    def prepare(checkpoints: Path) -> None:
        final = save(checkpoints, 10)
        write_save(checkpoints, 20, claim(checkpoints))
        final.rename(replaced_folder(final))

    for checkpoints in stop_everywhere(tmp_path, prepare, clear_leftovers):
        assert survive(checkpoints)[0] == step_folder(checkpoints, 10)


def test_deleting_that_is_killed_anywhere_leaves_only_whole_ones(tmp_path: Path) -> None:
    def prepare(checkpoints: Path) -> None:
        for step in (1, 2, 3):
            save(checkpoints, step)

    for checkpoints in stop_everywhere(tmp_path, prepare, lambda folder: delete_old(folder, 1, None, ())):
        assert all(problem_with(step_folder(checkpoints, step)) is None for step in saved_steps(checkpoints))
        assert survive(checkpoints)[0] == step_folder(checkpoints, 3)
        delete_old(checkpoints, 1, None, ())
        assert saved_steps(checkpoints) == [3]


def test_old_checkpoints_go_by_the_rule(tmp_path: Path) -> None:
    for step in (100, 150, 200, 250, 300, 12_345_678):
        save(tmp_path, step)
    (step_folder(tmp_path, 12_345_678) / "state.json").unlink()
    # What an earlier deletion could not delete to the end is in nobody's way.
    (tmp_path / ".step-0000150.deleted.partial" / "weights").mkdir(parents=True)
    assert delete_old(tmp_path, 1, 100, {12_345_678}) == [150, 250, 12_345_678]
    assert saved_steps(tmp_path) == [100, 200, 300]
    assert not list(tmp_path.glob(".step-*"))
    assert delete_old(tmp_path, 1, 100, ()) == []


def test_a_broken_checkpoint_of_the_same_step_makes_room(tmp_path: Path) -> None:
    save(tmp_path, 10)
    folder = save(tmp_path, 20, b"old")
    (folder / "state.json").unlink()
    assert problem_with(save(tmp_path, 20, b"new")) is None


def test_a_file_in_place_of_the_checkpoint_makes_room(tmp_path: Path) -> None:
    tmp_path.joinpath("step-0000020").write_text("not a folder")
    assert problem_with(save(tmp_path, 20)) is None


def test_leftovers_of_dead_starts_are_cleared_and_nothing_else(tmp_path: Path) -> None:
    good = save(tmp_path, 10)
    mine = claim(tmp_path)
    write_save(tmp_path, 20, mine)
    (tmp_path / ".step-0000007.deleted.partial").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "step-0000030.partial").mkdir()
    clear_leftovers(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {".lock", ".owner.json", LATEST, good.name, "notes.txt", "step-0000030.partial"}


def test_not_enough_room_is_said_before_a_byte_is_written(tmp_path: Path) -> None:
    mine = claim(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    needed = shutil.disk_usage(tmp_path).total + 1
    with pytest.raises(
        NotEnoughSpaceError, match=r"a checkpoint takes [\d,.]+ [MGT]B, [\d,.]+ [MGT]B are free"
    ):
        prepare_staging(tmp_path, 10, mine, needed)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_what_an_earlier_attempt_of_the_same_start_left_is_not_taken_over(tmp_path: Path) -> None:
    mine = claim(tmp_path)
    stale = prepare_staging(tmp_path, 10, mine, 1) / "weights" / "rank-00009.safetensors"
    stale.write_bytes(b"half")
    folder = save(tmp_path, 10, mine=mine)
    assert problem_with(folder) is None
    assert not (folder / "weights" / stale.name).exists()


def test_something_in_the_way_of_the_staging_folder_is_an_error_of_the_system(tmp_path: Path) -> None:
    """Not a wrong checkpoint: the caller tells the user."""
    mine = claim(tmp_path)
    staging_folder(tmp_path, 10, mine.start).write_text("a file")
    with pytest.raises(OSError, match=r"step-0000010\.start-1\.partial"):
        prepare_staging(tmp_path, 10, mine, 1)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(OSError, match="file"):
        claim(file)


def test_a_failed_save_is_discarded_and_the_next_one_works(tmp_path: Path) -> None:
    good, mine = save(tmp_path, 10), claim(tmp_path)
    write_save(tmp_path, 20, mine)
    discard_staging(tmp_path, 20, mine)
    discard_staging(tmp_path, 20, mine)
    assert newest_whole(tmp_path, Alone(), quiet) == (good, {})
    assert not list(tmp_path.glob(".step-*"))
    assert problem_with(save(tmp_path, 20, mine=mine)) is None


def test_what_ranks_have_in_common_is_described_while_their_shards_are_being_written(tmp_path: Path) -> None:
    """A half-written shard has no checksum yet, and reading it would cost minutes; a note is renamed meanwhile."""
    folder = prepare_staging(tmp_path, 10, claim(tmp_path), 1)
    (folder / "weights" / "rank-00001.safetensors").write_bytes(b"half")
    (folder / ".rank-00001.json").write_text("a note of rank 1, on a local disk")
    (folder / "..rank-00001.json.e8168878.tmp").write_text("the same, a moment earlier")
    write_text(folder / "model" / "config.json", "{}")
    write_text(folder / "state.json", "")
    files = describe_files(folder)
    assert {name: facts.bytes for name, facts in files.items()} == {"model/config.json": 2, "state.json": 0}


def test_the_manifest_says_who_wrote_it(tmp_path: Path) -> None:
    first = read_manifest(save(tmp_path, 10))
    mine = claim(tmp_path)
    files = write_save(tmp_path, 20, mine)
    folder, manifest = commit(tmp_path, 20, mine, RANKS, files)
    assert read_manifest(folder) == manifest
    assert (manifest.run, manifest.start, manifest.ranks) == (first.run, 2, RANKS)
    assert manifest.files == files
    assert json.loads((folder / "manifest.json").read_text())["version"] == 2
    assert (tmp_path / LATEST).read_text() == "step-0000020\n"
