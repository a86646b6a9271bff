"""Inspection: right numbers, and every kind of damage found."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForMaskedLM

from sparse_pretrain.checkpoint.inspect import inspect, inspect_checkpoint, render
from sparse_pretrain.checkpoint.release import release
from sparse_pretrain.errors import UserError
from sparse_pretrain.pruning.masks import MASK_FILE, MaskSet
from tests.finetune.models import SPARSITY, dense_folder, tiny_contents

QUIET = Console(quiet=True)
QUERY = "bert.encoder.layer.0.attention.self.query.weight"


@pytest.fixture
def released(tmp_path: Path) -> Path:
    return release(tiny_contents(tmp_path / "checkpoint-model"), tmp_path / "out", QUIET)


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change tensors of a release behind its back."""
    file = folder / "model.safetensors"
    weights = {name: tensor.clone() for name, tensor in load_file(file).items()}
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def test_a_sound_release_passes_with_its_numbers(released: Path) -> None:
    report = inspect(released)
    assert report["check"] == {"ok": True, "nonzero_outside_mask": 0, "not_finite": 0, "problems": []}
    assert (report["kind"], report["masks"], report["architecture"]) == ("release", "file", "BertForMaskedLM")
    assert len(report["layers"]) == 12
    assert report["prunable"]["sparsity"] == pytest.approx(SPARSITY, abs=1e-3)
    assert 0 < report["total"]["sparsity"] < report["prunable"]["sparsity"]
    assert report["provenance"]["data_fingerprint"] == "f1a9e7"
    assert json.loads(json.dumps(report)) == report


def test_a_weight_outside_its_mask_is_found(released: Path) -> None:
    mask = MaskSet.load(released / MASK_FILE)[QUERY]
    place = tuple(int(index) for index in (~mask).nonzero()[5])
    edit(released, lambda weights: weights[QUERY].__setitem__(place, 1e-30))
    check = inspect(released)["check"]
    assert not check["ok"]
    assert check["nonzero_outside_mask"] == 1
    assert any("1 weights outside the masks" in problem for problem in check["problems"])


def test_a_changed_kept_weight_a_nan_and_lost_or_foreign_masks_are_found(released: Path) -> None:
    edit(released, lambda weights: weights["bert.embeddings.LayerNorm.bias"].add_(1))
    assert "checksum differs" in inspect(released)["check"]["problems"][0]
    edit(released, lambda weights: weights["bert.embeddings.LayerNorm.bias"].fill_(float("nan")))
    assert inspect(released)["check"]["not_finite"] == 32
    masks = MaskSet.load(released / MASK_FILE)
    first = next(iter(masks))
    MaskSet({**masks, first: torch.ones_like(masks[first])}).save(released / MASK_FILE)
    assert any("digest differs" in problem for problem in inspect(released)["check"]["problems"])
    MaskSet({first: torch.ones(2, 2, dtype=torch.bool), "ghost": torch.ones(2)}).save(released / MASK_FILE)
    problems = "\n".join(inspect(released)["check"]["problems"])
    assert "mask of shape [2, 2] on a weight of shape" in problems
    assert "ghost: has a mask, but the model has no such weight" in problems
    (released / MASK_FILE).unlink()
    assert any(
        "mask file of the release is missing" in problem for problem in inspect(released)["check"]["problems"]
    )


def test_a_truncated_file_is_one_line(released: Path) -> None:
    file = released / "model.safetensors"
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(UserError, match=r"model\.safetensors: broken weights file"):
        inspect(released)


def test_zeros_are_the_masks_of_a_torch_file_without_masks(released: Path, tmp_path: Path) -> None:
    folder = tmp_path / "intel-like"
    folder.mkdir()
    torch.save(AutoModelForMaskedLM.from_pretrained(released).state_dict(), folder / "pytorch_model.bin")
    (folder / "config.json").write_bytes((released / "config.json").read_bytes())
    report = inspect(folder)
    assert (report["kind"], report["masks"], report["check"]["ok"]) == ("model", "zeros", True)
    assert report["prunable"] == inspect(released)["prunable"]
    zeros = {row["name"]: row["zeros"] for row in report["layers"]}
    assert zeros == {row["name"]: row["zeros"] for row in inspect(released)["layers"]}


def test_a_bare_encoder_under_the_config_of_a_headed_class_is_understood(
    released: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bare"
    AutoModel.from_pretrained(released).save_pretrained(folder)
    (folder / "config.json").write_bytes((released / "config.json").read_bytes())
    report = inspect(folder)
    assert report["masks"] == "zeros"
    assert len(report["layers"]) >= 12


def test_a_dense_model_has_no_masks(tmp_path: Path) -> None:
    report = inspect(dense_folder(tmp_path / "dense"))
    assert (report["masks"], report["check"]["ok"], report["prunable"]["zeros"]) == ("none", True, 0)


def test_a_checkpoints_zeros_are_counted_off_its_masks(tmp_path: Path) -> None:
    report = inspect_checkpoint(tiny_contents(tmp_path / "model"), "step-0000100")
    assert report["check"]["ok"]
    assert report["prunable"]["sparsity"] == pytest.approx(SPARSITY, abs=1e-3)
    assert report["provenance"]["step"] == 100


def test_a_pickle_that_would_run_code_is_refused(released: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "sprung"),))

    folder = tmp_path / "trap"
    folder.mkdir()
    (folder / "config.json").write_bytes((released / "config.json").read_bytes())
    torch.save({"weight": Trap()}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="not a plain weights file"):
        inspect(folder)
    assert not (tmp_path / "sprung").exists()


def test_nothing_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model here"):
        inspect(tmp_path)


def test_render_shows_the_table_and_the_verdict(released: Path) -> None:
    console = Console(record=True, width=160, quiet=False, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    render(inspect(released), console)
    shown = console.export_text()
    assert QUERY in shown
    assert "mask check: passed" in shown
    edit(released, lambda weights: weights[QUERY].fill_(1.0))
    render(inspect(released), console)
    assert "problem:" in console.export_text()
