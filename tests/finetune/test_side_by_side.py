"""Runs at the same time, each in its own process: the same numbers, and none left behind."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from sparse_pretrain import cli
from sparse_pretrain.errors import FailedError, UserError
from sparse_pretrain.finetune import side_by_side as module
from sparse_pretrain.finetune.campaign import campaign
from sparse_pretrain.finetune.recipe import FinetuneRecipe
from sparse_pretrain.finetune.side_by_side import DIVERGED, MISTAKE, place, side_by_side
from tests.finetune.models import recipe

QUIET = Console(quiet=True)


@pytest.mark.slow
def test_runs_side_by_side_have_the_numbers_of_runs_one_by_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    sections = {"seeds": [1, 2]}
    console = Console(record=True, width=160)
    both = recipe(folder, tmp_path / "both", sections=sections, epochs=1)
    result = campaign(both, False, console, workers=2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    single = recipe(folder, tmp_path / "single", sections=sections, epochs=1)
    assert result["points"][0]["metrics"] == campaign(single, False, QUIET)["points"][0]["metrics"]
    torch.set_num_threads(threads)
    for seed in (1, 2):
        mine, theirs = (
            load_file(tmp_path / name / f"seed-{seed}" / "model" / "model.safetensors")
            for name in ("both", "single")
        )
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert "2 of 2 done" in console.export_text()
    assert "masks locked" in (tmp_path / "both" / "seed-1" / "logs" / "output.log").read_text()
    # The same command again only reads.
    assert campaign(both, False, QUIET, workers=2) == result


def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *scripts: str) -> list[FinetuneRecipe]:
    """Runs whose processes do what a shell script says, the first script for `seed` 0."""
    monkeypatch.setattr(
        module,
        "command_of",
        lambda file: ["sh", "-c", scripts[int(file.read_text().split("seed: ")[1].split()[0])]],
    )
    return [
        recipe(tmp_path, tmp_path / f"run-{seed}").model_copy(update={"seed": seed})
        for seed in range(len(scripts))
    ]


def test_how_a_run_ended_is_told_by_its_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = f"echo head.weight is NaN; exit {DIVERGED}"
    (first, _), (_, error) = sorted(
        ((one.seed, error) for one, error in side_by_side(runs(tmp_path, monkeypatch, "true", said), 2)),
        key=lambda pair: pair[0],
    )
    assert (first, str(error)) == (0, "head.weight is NaN")
    with pytest.raises(UserError, match=r"^no such file$"):
        list(side_by_side(runs(tmp_path, monkeypatch, f"echo no such file; exit {MISTAKE}"), 2))
    with pytest.raises(FailedError, match=r"run-0: exit code 9: boom; see .*run-0/logs/output\.log"):
        list(side_by_side(runs(tmp_path, monkeypatch, "echo boom; exit 9"), 2))


def test_a_failure_or_sigterm_ends_every_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = time.monotonic()
    scripts = ("exit 9", "exec sleep 60", "exec sleep 60")
    with pytest.raises(FailedError):
        list(side_by_side(runs(tmp_path, monkeypatch, *scripts), 2))
    before = signal.getsignal(signal.SIGTERM)
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        list(side_by_side(runs(tmp_path, monkeypatch, "exec sleep 60", "exec sleep 60"), 2))
    assert signal.getsignal(signal.SIGTERM) == before
    assert time.monotonic() - started < 20


def test_each_place_has_its_share_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert place(0, 3)["OMP_NUM_THREADS"] == "2"
    assert "WORLD_SIZE" not in place(0, 3)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert [place(number, 3)["CUDA_VISIBLE_DEVICES"] for number in range(3)] == ["3", "5", "3"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert place(1, 2)["CUDA_VISIBLE_DEVICES"] == "1"


def test_one_run_has_nothing_beside_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["finetune", "finetune-sst2", "model=a", "--parallel", "2"]
    monkeypatch.setattr(sys, "argv", ["sparse-pretrain", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert "--parallel 2: belongs to several runs; set seeds" in capfd.readouterr().err
