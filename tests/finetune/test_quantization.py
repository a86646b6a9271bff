"""Fine-tuning with int8 in the loop: zeros stay, the folder answers as training measured, mistakes stop it first."""

from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import AutoModel, AutoModelForSequenceClassification
from typer.testing import CliRunner

from sparse_pretrain.cli import app
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import read_json
from sparse_pretrain.finetune.evaluate import evaluate
from sparse_pretrain.finetune.mask_lock import nonzero_outside
from sparse_pretrain.finetune.recipe import QuantizationSection
from sparse_pretrain.finetune.train import finetune, prepare
from sparse_pretrain.pruning.masks import MASK_FILE, MaskSet
from sparse_pretrain.quantization.rounding import integers
from sparse_pretrain.quantization.stored import QUANTIZATION_FILE
from tests.finetune.models import pairs, recipe, write_sentences
from tests.tiny import tiny_tokenizer
from tests.tiny_models import tiny_config

QUIET = Console(quiet=True)
SECTION = {"momentum": 0.1, "calibration_steps": 4, "freeze_after": 0.5}


def test_an_int8_run_with_a_teacher_keeps_its_zeros_and_measures_the_same_again(
    folder: Path, tmp_path: Path
) -> None:
    sections = {
        "quantization": SECTION,
        "distillation": {"teacher": "auto", "dense": str(folder / "dense")},
    }
    settings = recipe(folder, tmp_path / "run", sections=sections, epochs=4, weight_decay=0.1)
    console = Console(record=True, width=120)
    result = finetune(settings, console)
    assert result.score > 0.85
    assert (result.nonzero_outside_masks, result.int8_layers) == (0, 17)
    assert "measured in int8: weights and activations of 17 layers rounded" in console.export_text()
    again = evaluate(result.output)
    assert again["metrics"] == result.metrics["validation"]
    assert (again["int8"], again["nonzero_outside_masks"]) == (True, 0)
    masks = MaskSet.load(result.model_folder / MASK_FILE)
    model = AutoModelForSequenceClassification.from_pretrained(result.model_folder)
    assert sum(nonzero_outside(model, masks).values()) == 0
    weights = dict(model.named_parameters())
    assert all(not integers(weights[name])[~mask].any() for name, mask in masks.items())
    stored = read_json(result.model_folder / QUANTIZATION_FILE)["layers"]
    assert stored["bert.encoder.layer.0.output.dense"]["output"] is None
    assert stored["bert.encoder.layer.0.intermediate.dense"]["output"]["scale"] > 0
    # Its teacher learnt without rounding.
    assert result.teacher is not None
    assert not (Path(result.teacher) / QUANTIZATION_FILE).exists()


def test_a_run_in_bf16_is_measured_as_int8_engines_compute(folder: Path, tmp_path: Path) -> None:
    """Not under the autocast that the trainer leaves around the model; a score shows every digit."""
    sections = {"quantization": {"calibration_steps": 2}}
    settings = recipe(folder, tmp_path / "run", "dense", pairs(folder), sections, epochs=1, precision="bf16")
    result = finetune(settings, QUIET)
    assert evaluate(result.output)["metrics"] == result.metrics["validation"]
    assert evaluate(result.output, precision="bf16")["metrics"] != result.metrics["validation"]


def test_a_run_with_ranges_that_never_stand_still_and_one_that_is_too_short(
    folder: Path, tmp_path: Path
) -> None:
    settings = recipe(folder, tmp_path / "run", sections={"quantization": {}}, epochs=1)
    with pytest.raises(UserError, match=r"quantization.calibration_steps = 20: the run has 12 optimizer"):
        prepare(settings)
    assert QuantizationSection().freeze_step(100) == 80
    assert QuantizationSection(freeze_after=1.0).freeze_step(100) == 100
    assert QuantizationSection(freeze_after=0.1).freeze_step(100) == 20
    assert QuantizationSection(freeze_after=30).freeze_step(100) == 30
    for section, words in (
        ({"freeze_after": 1.5}, "a share up to 1.0"),
        ({"freeze_after": 5}, "ranges are observed for calibration_steps = 20 at least"),
        ({"bits": 4}, "8"),
    ):
        with pytest.raises(ValueError, match=words):
            QuantizationSection.model_validate(section)


def test_an_unsupported_layer_is_one_line_and_exit_code_2(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    AutoModel.from_config(tiny_config("albert")).save_pretrained(tmp_path / "albert")
    tiny_tokenizer().save_pretrained(tmp_path / "albert")
    data = write_sentences(tmp_path / "sentences.csv", 60)
    (tmp_path / "task.yaml").write_text(
        f"output: {tmp_path / 'run'}\nmodel: {tmp_path / 'albert'}\n"
        f"task: {{kind: classification, train: {data}, text: text, label: label}}\n"
        "training: {max_length: 32, batch_size: 2}\nquantization: {}\n"
    )
    done = CliRunner().invoke(app, ["finetune", str(tmp_path / "task.yaml")])
    assert isinstance(done.exception, UserError)
    assert str(done.exception).startswith("quantization: AlbertForSequenceClassification is not supported")
    assert "\n" not in str(done.exception)
    assert not (tmp_path / "run").exists()
