"""The `teacher-logits` command: what it writes, how it continues, and what it refuses."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sparse_pretrain import cli
from sparse_pretrain.errors import UserError
from sparse_pretrain.training import teacher_logits
from sparse_pretrain.training.teacher_logits import write_teacher_logits
from tests.training.stored_logits import QUIET, TOP_K, check, contents, recipe_of, stored_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data, a teacher, and its logits in shards of one step."""
    return stored_folder(tmp_path_factory.mktemp("stored"))


def test_a_killed_command_goes_on_with_the_next_shard(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped inside the second shard: the first stays untouched, the end is the same byte for byte."""
    monkeypatch.setattr(teacher_logits, "SHARD_BYTES", 1)
    written: list[str] = []
    original = teacher_logits.write_shard

    def dies(path: Path, *rest: Any) -> None:
        if path.name == "logits-00001.safetensors":
            path.with_name(f".{path.name}.1.tmp").write_bytes(b"half")
            raise KeyboardInterrupt
        original(path, *rest)

    out = tmp_path / "logits"
    monkeypatch.setattr(teacher_logits, "write_shard", dies)
    with pytest.raises(KeyboardInterrupt):
        write_teacher_logits(recipe_of(folder), out, TOP_K, QUIET)
    with pytest.raises(
        UserError, match="2 of 3 shards are missing; finish them: sparse-pretrain teacher-logits"
    ):
        check(folder, {"precomputed": str(out)})

    def counts(path: Path, *rest: Any) -> None:
        written.append(path.name)
        original(path, *rest)

    monkeypatch.setattr(teacher_logits, "write_shard", counts)
    facts = write_teacher_logits(recipe_of(folder), out, TOP_K, QUIET)
    assert written == ["logits-00001.safetensors", "logits-00002.safetensors"]
    assert contents(out) == contents(folder / "logits")
    assert facts["bytes"] == sum(path.stat().st_size for path in out.glob("*.safetensors"))
    write_teacher_logits(recipe_of(folder), out, TOP_K, QUIET)
    assert len(written) == 2


def test_processes_share_the_shards(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under torchrun: two processes, each its own shards, the same files as one process writes."""
    monkeypatch.setattr(teacher_logits, "SHARD_BYTES", 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    out = tmp_path / "logits"
    for rank, expected in ((0, 2), (1, 3)):
        monkeypatch.setenv("RANK", str(rank))
        write_teacher_logits(recipe_of(folder), out, TOP_K, QUIET)
        assert len(list(out.glob("*.safetensors"))) == expected
    assert contents(out) == contents(folder / "logits")


def test_a_folder_that_was_begun_in_another_precision(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "logits", tmp_path / "logits")
    with pytest.raises(UserError, match="was begun with precision = fp32, now it is bf16"):
        write_teacher_logits(recipe_of(folder, precision="bf16"), tmp_path / "logits", TOP_K, QUIET)


def test_a_folder_that_was_begun_for_another_run(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "logits", tmp_path / "logits")
    with pytest.raises(UserError, match="was begun with top_k = 9, now it is 8; give another folder"):
        write_teacher_logits(recipe_of(folder), tmp_path / "logits", 8, QUIET)


def test_a_full_disk_is_refused_before_anything_is_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(UserError, match=r"needs about .* kB, 5 B are free"):
        write_teacher_logits(recipe_of(folder), tmp_path / "logits", TOP_K, QUIET)
    assert not (tmp_path / "logits").exists()


def test_ids_wait_for_their_shard_in_the_type_of_the_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = set()
    original = teacher_logits.write_shard

    def looks(path: Path, counts: Any, hashes: Any, parts: Any, manifest: Any) -> None:
        kinds.update(part.ids.dtype for part in parts)
        original(path, counts, hashes, parts, manifest)

    monkeypatch.setattr(teacher_logits, "write_shard", looks)
    write_teacher_logits(recipe_of(folder), tmp_path / "logits", TOP_K, QUIET)
    assert kinds == {torch.uint16}


@pytest.mark.parametrize("rank", [0, 1])
def test_the_command_says_once_what_it_costs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, rank: int
) -> None:
    if rank:
        for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
            monkeypatch.setenv(name, value)
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "sparse-pretrain",
            *("teacher-logits", "train-tiny", str(tmp_path / "out"), "output=run", "--json", "--top-k", "4"),
            *(f"data.path={folder / 'data'}", f"distillation.teacher={folder / 'teacher'}", "steps=10"),
        ],
    )
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    output, errors = capfd.readouterr()
    if rank:
        assert output == ""
        return
    facts = json.loads(output)
    assert facts["bytes"] == sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    assert "10 steps, about" in errors
    assert "on disk (1 shards, 0 already there)" in errors
