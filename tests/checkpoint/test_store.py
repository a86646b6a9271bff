"""Checkpoints exist whole or not at all, and fragments are read back by any number of ranks."""

import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_pretrain.checkpoint.shards import FragmentReader, write_rank
from sparse_pretrain.checkpoint.store import (
    newest_checkpoint,
    problem_with,
    resolve_checkpoint,
    save_checkpoint,
    saved_steps,
    step_folder,
)
from sparse_pretrain.errors import UserError


class Alone:
    """A run of one rank."""

    rank = 0

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def barrier(self) -> None:
        return None


def save(checkpoints: Path, step: int, content: bytes = b"weights", keep_last: int = 3) -> Path:
    def write_shard(path: Path) -> None:
        path.write_bytes(content * 100)

    def write_shared(folder: Path) -> None:
        (folder / "state.json").write_text("{}")

    return save_checkpoint(checkpoints, step, Alone(), write_shard, write_shared, keep_last)


def truncate(folder: Path) -> None:
    shard = folder / "weights" / "rank-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])


def flip_a_bit(folder: Path) -> None:
    shard = folder / "weights" / "rank-00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[50] ^= 1
    shard.write_bytes(bytes(content))


def lose_a_file(folder: Path) -> None:
    (folder / "state.json").unlink()


def lose_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def break_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"files": ')


DAMAGE = {
    truncate: "699 bytes, the manifest says 700",
    flip_a_bit: "does not match its checksum",
    lose_a_file: "state.json is missing",
    lose_the_manifest: "the save was not finished",
    break_the_manifest: "manifest.json is not readable",
}


@pytest.mark.parametrize(("damage", "said"), DAMAGE.items())
def test_a_damaged_checkpoint_is_passed_over_and_named(
    tmp_path: Path, damage: Callable[[Path], None], said: str
) -> None:
    good = save(tmp_path, 10)
    damage(save(tmp_path, 20))
    heard: list[str] = []
    assert newest_checkpoint(tmp_path, heard.append) == good
    assert len(heard) == 1
    assert "step-0000020" in heard[0]
    assert said in heard[0]


def test_when_none_is_whole_nothing_starts_afresh(tmp_path: Path) -> None:
    truncate(save(tmp_path, 10))
    with pytest.raises(UserError, match="none of 1 checkpoints is whole"):
        newest_checkpoint(tmp_path, lambda text: None)


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "nowhere", lambda text: None) is None


def test_a_save_that_fails_commits_nothing(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    good = save(tmp_path, 10)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(tmp_path, 20, Alone(), fail, lambda folder: None, keep_last=1)
    assert saved_steps(tmp_path) == [10]
    assert problem_with(good) is None
    # The staging folder that is left is used again, not trusted.
    assert problem_with(save(tmp_path, 20)) is None


def test_old_checkpoints_go_only_after_a_new_one_is_there(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step, keep_last=2)
    assert saved_steps(tmp_path) == [3, 4]


def test_a_run_folder_means_its_newest_checkpoint(tmp_path: Path) -> None:
    for step in (5, 12_345_678):
        save(tmp_path / "checkpoints", step)
    newest = step_folder(tmp_path / "checkpoints", 12_345_678)
    assert resolve_checkpoint(tmp_path) == resolve_checkpoint(newest) == newest
    with pytest.raises(UserError, match="neither a checkpoint nor a run folder"):
        resolve_checkpoint(tmp_path / "checkpoints")


@settings(max_examples=30, deadline=None)
@given(
    numel=st.integers(1, 50),
    cuts=st.lists(st.integers(0, 50), max_size=4),
    start=st.integers(0, 49),
    length=st.integers(1, 50),
)
def test_any_range_is_read_whatever_the_cut(
    tmp_path_factory: pytest.TempPathFactory, numel: int, cuts: list[int], start: int, length: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    weight = torch.arange(numel, dtype=torch.float32)
    edges = sorted({0, numel, *(cut for cut in cuts if cut < numel)})
    files = []
    for rank, (first, last) in enumerate(pairwise(edges)):
        path = folder / f"rank-{rank:05d}.safetensors"
        write_rank(path, iter([("master", "w", first, weight[first:last])]), {"w": weight.shape}, {})
        files.append(path)
    reader = FragmentReader(files)
    assert torch.equal(reader.whole("master", "w"), weight)
    if start + length <= numel:
        assert torch.equal(reader.read("master", "w", start, length), weight[start : start + length])
    if len(files) > 1:
        with pytest.raises(UserError, match="a shard is missing"):
            FragmentReader(files[1:]).whole("master", "w")
    shutil.rmtree(folder)
