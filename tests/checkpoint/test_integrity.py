"""A checkpoint is whole or its damage is named; a run goes on from the newest whole one or not at all."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sparse_pretrain.checkpoint.integrity import (
    FileFacts,
    Manifest,
    newest_whole,
    problem_with,
    read_manifest,
)
from sparse_pretrain.checkpoint.layout import (
    checkpoints_of,
    is_checkpoint,
    resolve_checkpoint,
    saved_steps,
    step_folder,
    weight_file,
)
from sparse_pretrain.errors import UserError
from tests.checkpoint.saves import Alone, quiet, save


def truncate(folder: Path) -> None:
    shard = weight_file(folder, 1)
    shard.write_bytes(shard.read_bytes()[:-1])


def flip_a_bit(folder: Path) -> None:
    shard = weight_file(folder, 2)
    content = bytearray(shard.read_bytes())
    content[5] ^= 1
    shard.write_bytes(bytes(content))


def lose_a_file(folder: Path) -> None:
    (folder / "state.json").unlink()


def lose_a_folder(folder: Path) -> None:
    (folder / "weights").rename(folder / "elsewhere")


def put_a_folder_in_place_of_a_file(folder: Path) -> None:
    shard = weight_file(folder, 0)
    shard.unlink()
    shard.mkdir()
    change_manifest(folder, lambda values: values["files"][NAME].update(bytes=shard.stat().st_size))


def make_a_loop(folder: Path) -> None:
    shard = weight_file(folder, 0)
    shard.unlink()
    shard.symlink_to(shard.name)


def lose_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def break_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"files": ')


def make_the_manifest_unreadable(folder: Path) -> None:
    """Reading this file of the kernel gives an input/output error, as a bad sector does."""
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").symlink_to("/proc/self/mem")


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads((folder / "manifest.json").read_text())
    change(values)
    (folder / "manifest.json").write_text(json.dumps(values))


def manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    return lambda folder: change_manifest(folder, change)


NAME = "weights/rank-00000.safetensors"
FACTS = {"bytes": 1, "xxh3": ""}
DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncate, "weights/rank-00001.safetensors has 13 bytes, the manifest says 14"),
    "a flipped bit": (flip_a_bit, "weights/rank-00002.safetensors does not match its checksum"),
    "a lost file": (lose_a_file, "state.json is missing"),
    "a lost folder": (lose_a_folder, f"{NAME} is missing"),
    "a folder for a file": (put_a_folder_in_place_of_a_file, f"{NAME} cannot be read (Is a directory)"),
    "a loop": (make_a_loop, f"{NAME} cannot be read (Too many levels of symbolic links)"),
    "no manifest": (lose_the_manifest, "no manifest.json: the save was not finished, or the file is lost"),
    "half a manifest": (break_the_manifest, "manifest.json is not valid JSON"),
    "an unreadable manifest": (make_the_manifest_unreadable, "manifest.json cannot be read (Input/output"),
    "another version": (
        manifest(lambda values: values.update(version=1)),
        "format version 1, this program reads version 2",
    ),
    "no version": (manifest(lambda values: values.pop("version")), "manifest.json is not readable (KeyError"),
    "no files": (manifest(lambda values: values.pop("files")), "manifest.json is not readable (KeyError"),
    "a list": (manifest(lambda values: values.update(files=[])), "manifest.json is not readable (Attribute"),
    "other facts": (
        manifest(lambda values: values["files"][NAME].update(mode=7)),
        "manifest.json is not readable (TypeError",
    ),
    "a path upwards": (
        manifest(lambda values: values["files"].update({"weights/../../latest": FACTS})),
        "manifest.json names weights/../../latest, which lies outside the checkpoint",
    ),
    "an absolute path": (
        manifest(lambda values: values["files"].update({"/etc/passwd": FACTS})),
        "manifest.json names /etc/passwd, which lies outside the checkpoint",
    ),
    "an impossible name": (
        manifest(lambda values: values["files"].update({"a\0b": FACTS})),
        r"'a\x00b' cannot be read (embedded null byte)",
    ),
    "half a letter": (
        manifest(lambda values: values["files"].update({"\ud800": FACTS})),
        r"'\ud800' cannot be read (",
    ),
    "another size in words": (
        manifest(lambda values: values["files"][NAME].update(bytes="many")),
        f"{NAME} has 7 bytes, the manifest says many",
    ),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_checkpoint_is_passed_over_and_named(
    tmp_path: Path, damage: Callable[[Path], None], said: str
) -> None:
    good = save(tmp_path, 10)
    bad = save(tmp_path, 20)
    assert problem_with(bad) is None
    damage(bad)
    heard: list[str] = []
    found, broken = newest_whole(tmp_path, Alone(), heard.append)
    assert found == good
    assert broken.keys() == {20}
    (line,) = heard
    assert line == f"{bad}: {broken[20]}; taking step-0000010 instead"
    assert said in broken[20]
    assert "\n" not in line


def test_sizes_alone_do_not_show_a_flipped_bit(tmp_path: Path) -> None:
    folder = save(tmp_path, 10)
    flip_a_bit(folder)
    assert problem_with(folder, checksums=False) is None
    assert problem_with(folder) is not None


def test_a_folder_that_is_nowhere_is_not_whole(tmp_path: Path) -> None:
    assert "the save was not finished" in (problem_with(tmp_path / "nowhere") or "")


def test_the_newest_of_all_is_taken_without_a_word(tmp_path: Path) -> None:
    save(tmp_path, 10)
    newest = save(tmp_path, 20)
    heard: list[str] = []
    assert newest_whole(tmp_path, Alone(), heard.append) == (newest, {})
    assert heard == []


def test_every_broken_one_that_is_passed_over_is_named(tmp_path: Path) -> None:
    good = save(tmp_path, 10)
    truncate(save(tmp_path, 20))
    lose_the_manifest(save(tmp_path, 30))
    heard: list[str] = []
    found, broken = newest_whole(tmp_path, Alone(), heard.append)
    assert found == good
    assert broken.keys() == {20, 30}
    assert ["step-0000030" in line for line in heard] == [True, False]


def test_when_none_is_whole_nothing_starts_afresh(tmp_path: Path) -> None:
    truncate(save(tmp_path, 10))
    lose_a_file(save(tmp_path, 20))
    with pytest.raises(
        UserError, match=r"step-0000020: state\.json is missing; none of 2 checkpoints is whole"
    ):
        newest_whole(tmp_path, Alone(), quiet)


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    assert newest_whole(tmp_path / "nowhere", Alone(), quiet) == (None, {})
    assert newest_whole(tmp_path, Alone(), quiet) == (None, {})


def test_a_manifest_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    written = Manifest(7, "run", 2, 3, {"größe.json": FileFacts(4, "ab"), "a/b": FileFacts(0, "")})
    assert Manifest.from_json(json.loads(json.dumps(written.to_json()))) == written
    assert written.total_bytes == 4
    folder = save(tmp_path, 12_345_678)
    stored = read_manifest(folder)
    assert (stored.step, stored.start, stored.ranks) == (12_345_678, 1, 3)
    assert set(stored.files) == {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    } - {"manifest.json"}


class Threads:
    """Ranks as threads: everyone waits for everyone's value."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size, timeout=20)
        self.values: list[Any] = [None] * size


class ThreadRank:
    """One of them."""

    def __init__(self, rank: int, group: Threads) -> None:
        self.rank = rank
        self.size = group.size
        self._group = group

    def gather(self, value: Any) -> list[Any]:
        self._group.values[self.rank] = value
        self._group.barrier.wait()
        found = list(self._group.values)
        self._group.barrier.wait()
        return found


def find_together(checkpoints: Path, size: int) -> list[tuple[Path | None, dict[int, str]]]:
    """Return what every one of some ranks finds."""
    group = Threads(size)
    with ThreadPoolExecutor(size) as pool:
        futures = [
            pool.submit(newest_whole, checkpoints, ThreadRank(rank, group), quiet) for rank in range(size)
        ]
        return [future.result(30) for future in futures]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_ranks_find_the_same_whatever_their_number(tmp_path: Path, size: int) -> None:
    """Each reads a share only (one of seven has nothing to read), and one that finds a fault tells the others."""
    good = save(tmp_path, 10)
    for damage in (truncate, flip_a_bit, lose_a_file):
        damage(save(tmp_path, 20))
        found = find_together(tmp_path, size)
        assert found == [found[0]] * size
        assert found[0][0] == good
    lose_a_file(good)
    with pytest.raises(UserError, match="none of 2 checkpoints is whole"):
        find_together(tmp_path, size)


def test_every_file_is_some_rank_s_to_check(tmp_path: Path) -> None:
    folder = save(tmp_path, 10)
    for name in read_manifest(folder).files:
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        with pytest.raises(UserError, match=f"{name} is missing"):
            find_together(tmp_path, 3)
        (folder / name).write_bytes(content)


def test_what_lies_beside_checkpoints_is_none(tmp_path: Path) -> None:
    """Other spellings of a number would lead to a folder that is not there."""
    newest = save(tmp_path, 20)
    for name in ("step-10", "step-00000030", "step-0000040.bak", "step-٠٠٠٠٠٥٠", ".step-0000060.replaced"):
        (tmp_path / name).mkdir()
    assert saved_steps(tmp_path) == [20]
    assert newest_whole(tmp_path, Alone(), quiet) == (newest, {})


def test_a_file_in_place_of_a_checkpoint_is_passed_over(tmp_path: Path) -> None:
    good = save(tmp_path, 10)
    (tmp_path / "step-0000020").write_text("not a folder")
    assert newest_whole(tmp_path, Alone(), quiet)[0] == good


def test_a_checkpoint_on_another_disk_behind_a_link_is_a_checkpoint(tmp_path: Path) -> None:
    elsewhere = save(tmp_path / "elsewhere", 10)
    (tmp_path / "checkpoints").mkdir()
    link = tmp_path / "checkpoints" / elsewhere.name
    link.symlink_to(elsewhere)
    assert newest_whole(tmp_path / "checkpoints", Alone(), quiet) == (link, {})


def test_a_run_folder_means_its_newest_checkpoint(tmp_path: Path) -> None:
    """Newest by number, not by spelling."""
    for step in (5, 9_999_999, 12_345_678):
        save(tmp_path / "checkpoints", step)
    newest = step_folder(tmp_path / "checkpoints", 12_345_678)
    assert saved_steps(tmp_path / "checkpoints") == [5, 9_999_999, 12_345_678]
    assert is_checkpoint(newest)
    assert resolve_checkpoint(tmp_path) == resolve_checkpoint(newest) == newest
    assert checkpoints_of(tmp_path) == checkpoints_of(tmp_path / "checkpoints") == tmp_path / "checkpoints"
    with pytest.raises(UserError, match="neither a checkpoint nor a run folder"):
        resolve_checkpoint(tmp_path / "checkpoints")
    with pytest.raises(UserError, match="neither a run folder nor a folder of checkpoints"):
        checkpoints_of(newest)
