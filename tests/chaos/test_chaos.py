"""What `make chaos` does a hundred times, a few times; and that it would notice."""

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparse_pretrain.checkpoint.fence import Claim
from sparse_pretrain.checkpoint.layout import CHECKPOINTS, weight_file
from sparse_pretrain.checkpoint.shards import MASTER, Piece, write_rank
from sparse_pretrain.checkpoint.staging import commit, describe_files, prepare_staging
from sparse_pretrain.files import write_json
from tests.chaos.faults import damage, flip_one_bit, leave_replaced
from tests.chaos.judge import Damaged, Expected, differences, expect, half_written
from tests.chaos.plan import FAST, draw_faults
from tests.chaos.watch import REPOSITORY

CLAIM = Claim("run", 1, "token", "host", 1, 0.0)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_survives_kills_damaged_files_and_a_full_disk(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.chaos", "--fast", "--workdir", str(tmp_path / "runs")]
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        printed, _ = process.communicate(timeout=570)
    finally:
        if process.poll() is None:
            # It ends what it has started.
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=20)
    print(printed)
    assert process.returncode == 0, printed
    assert printed.splitlines()[-1] == f"{len(FAST)} faults, 0 lost, 0 corrupt"
    assert "equal to the uninterrupted run" in printed


def test_the_same_seed_draws_the_same_faults_and_a_hundred_cover_all_kinds() -> None:
    planned = draw_faults(100, seed=0)
    assert planned == draw_faults(100, seed=0) != draw_faults(100, seed=1)
    assert {fault.stop for fault in planned} == {
        *("kill-rank", "kill-all", "term-kill", "disk-before", "disk-middle")
    }
    assert {fault.after for fault in planned} == {
        *("nothing", "truncate", "flip", "delete", "partial", "replaced", "doubled")
    }
    kills = [fault for fault in planned if fault.stop.startswith("kill")]
    assert 0.4 < sum(fault.aim in ("save", "commit") for fault in kills) / len(kills) < 0.6


def checkpoint(run: Path, step: int, value: float = 1.0) -> Path:
    """Commit a small checkpoint that says it was trained, and the step's row."""
    checkpoints = run / CHECKPOINTS
    write_json(checkpoints / ".owner.json", vars(CLAIM))
    folder = prepare_staging(checkpoints, step, CLAIM, needed=0)
    values = torch.full((64,), value)
    write_rank(weight_file(folder, 0), [Piece(MASTER, "w", 0, values)], {"w": values.shape}, {})
    write_json(folder / "state.json", {"step": step})
    with (run / "metrics.jsonl").open("a") as file:
        file.write(f'{{"kind": "train", "step": {step}, "loss": {value}}}\n')
    return commit(checkpoints, step, CLAIM, 1, describe_files(folder))[0]


def test_one_other_bit_in_the_weights_is_a_difference(tmp_path: Path) -> None:
    for name, value in (("one", 1.0), ("same", 1.0), ("other", 1.0 + 2**-23)):
        (tmp_path / name).mkdir()
        checkpoint(tmp_path / name, 20, value)
    assert differences(tmp_path / "one", tmp_path / "same") == []
    found = differences(tmp_path / "other", tmp_path / "one")
    assert found[0] == "master/w: 64 values differ"


def test_the_newest_undamaged_checkpoint_is_expected_also_when_it_lies_aside(tmp_path: Path) -> None:
    damaged = Damaged()
    for step in (20, 40):
        newest = checkpoint(tmp_path, step)
    assert expect(tmp_path, damaged, "", 20) == Expected(40, (), 40)
    leave_replaced(newest)
    assert expect(tmp_path, damaged, "", 20) == Expected(40, (), 40)
    newest = checkpoint(tmp_path, 60)
    damage(newest, "delete", random.Random(0))
    assert half_written(tmp_path, damaged)
    damaged.add(newest)
    assert not half_written(tmp_path, damaged)
    assert expect(tmp_path, damaged, "", 20) == Expected(40, (60,), 60)


def test_a_checkpoint_written_again_is_not_the_one_that_was_damaged(tmp_path: Path) -> None:
    damaged = Damaged()
    first = checkpoint(tmp_path, 20)
    flip_one_bit(weight_file(first, 0), random.Random(0))
    damaged.add(first)
    again = checkpoint(tmp_path, 20)
    assert again == first
    assert again not in damaged


def test_work_counts_as_lost_from_the_save_that_was_under_way(tmp_path: Path) -> None:
    checkpoint(tmp_path, 20)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 47, "loss": 1}\n{"kind": "tr')
    assert expect(tmp_path, Damaged(), "", 20).worked == 47
    refused = "x: step 38 was not saved: rank 0: No space left"
    assert expect(tmp_path, Damaged(), refused, 20).worked == 38
    assert expect(tmp_path, Damaged(), "run: No space left", 20, disk_was_full=True).worked == 40
    (tmp_path / CHECKPOINTS / ".step-0000040.start-2.partial").mkdir()
    assert expect(tmp_path, Damaged(), "", 20).worked == 40


def test_more_than_a_save_interval_is_complained_of() -> None:
    assert Expected(20, (), 40).complaint(every=20) is None
    assert "21 steps of work lost" in (Expected(20, (), 41).complaint(every=20) or "")
    assert Expected(20, (40,), 60).complaint(every=20) is None
    assert "60 steps of work lost" in (Expected(None, (40,), 60).complaint(every=20) or "")
