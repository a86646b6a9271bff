"""A release: exact zeros, whole, loadable by anybody, or not there at all."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForPreTraining, AutoTokenizer

from sparse_pretrain.checkpoint.card import method, shown_setting
from sparse_pretrain.checkpoint.release import ReleaseError, release
from sparse_pretrain.errors import UserError
from sparse_pretrain.pruning.masks import MASK_FILE, MaskSet
from tests.finetune.models import SPARSITY, tiny_contents

QUIET = Console(quiet=True)
CASES = [("bert", False), ("bert", True), ("distilbert", False), ("roberta", False)]


@pytest.mark.parametrize(("model_type", "next_sentence"), CASES)
def test_zeros_are_exact_and_everything_else_is_untouched(
    model_type: str, next_sentence: bool, tmp_path: Path
) -> None:
    contents = tiny_contents(tmp_path / "model", model_type, next_sentence)
    folder = release(contents, tmp_path / "out", QUIET)
    stored = load_file(folder / "model.safetensors")
    assert contents.masks is not None
    assert len(contents.masks) >= 12
    for name, mask in contents.masks.items():
        zeros = int((stored[name] == 0).sum())
        assert abs(zeros / mask.numel() - SPARSITY) <= 1 / mask.numel()
        assert torch.equal(stored[name] == 0, ~mask)
    for name, weight in contents.weights.items():
        if name in stored:
            kept = (
                contents.masks[name] if name in contents.masks else torch.ones_like(weight, dtype=torch.bool)
            )
            assert torch.equal(stored[name][kept], weight[kept])
    factory = AutoModelForPreTraining if next_sentence else AutoModelForMaskedLM
    loaded = dict(factory.from_pretrained(folder).named_parameters())
    assert loaded.keys() == contents.weights.keys()
    for name, weight in contents.weights.items():
        if name not in contents.masks:
            assert torch.equal(loaded[name], weight), name


def test_plain_auto_classes_load_it_and_tied_weights_stay_tied(tmp_path: Path) -> None:
    contents = tiny_contents(tmp_path / "model", next_sentence=True)
    folder = release(contents, tmp_path / "out", QUIET)
    encoder = AutoModel.from_pretrained(folder)
    query = encoder.encoder.layer[0].attention.self.query.weight
    assert float((query == 0).float().mean()) == pytest.approx(SPARSITY, abs=1 / query.numel())
    model = AutoModelForPreTraining.from_pretrained(folder)
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert AutoTokenizer.from_pretrained(folder)("ba be")["input_ids"][0] == 2


def test_masks_come_back_bit_for_bit_at_one_bit_a_weight(tmp_path: Path) -> None:
    contents = tiny_contents(tmp_path / "model")
    folder = release(contents, tmp_path / "out", QUIET)
    assert contents.masks is not None
    assert MaskSet.load(folder / MASK_FILE).digest() == contents.masks.digest()
    weights = sum(mask.numel() for mask in contents.masks.values())
    assert (folder / MASK_FILE).stat().st_size < weights / 8 + 5000


def test_the_model_card_tells_sparsity_data_and_metrics(tmp_path: Path) -> None:
    contents = tiny_contents(tmp_path / "model")
    recipe = contents.recipe | {"distillation": {"teacher": "/home/somebody/teacher", "temperature": 2.0}}
    folder = release(replace(contents, recipe=recipe), tmp_path / "my-sparse-bert", QUIET)
    card = (folder / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == "google-bert/bert-base-uncased"
    assert "sparse" in front["tags"]
    assert "# my-sparse-bert" in card
    assert "f1a9e7" in card
    assert "distillation: teacher = a local folder, temperature = 2.0" in card
    assert "somebody" not in card
    assert "validation_mlm_loss: 2.5" in card
    assert "| `bert.encoder.layer.1.output.dense.weight` | 32 x 37 | 1,184 | 1,006 |" in card


def test_a_run_without_pruning_is_released_dense(tmp_path: Path) -> None:
    folder = release(tiny_contents(tmp_path / "model", sparse=False), tmp_path / "out", QUIET)
    assert not (folder / MASK_FILE).exists()
    assert "A dense `BertForMaskedLM`" in (folder / "README.md").read_text(encoding="utf-8")


def test_only_an_earlier_release_is_overwritten_and_only_when_asked(tmp_path: Path) -> None:
    contents = tiny_contents(tmp_path / "model")
    out = release(contents, tmp_path / "out", QUIET)
    with pytest.raises(UserError, match="exists and is not empty"):
        release(contents, out, QUIET)
    release(replace(contents, step=200), out, QUIET, overwrite=True)
    assert "optimizer steps: 200" in (out / "README.md").read_text(encoding="utf-8")
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds no release"):
        release(contents, precious, QUIET, overwrite=True)
    assert (precious / "thesis.tex").read_text() == "years of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out", "precious"]


def test_nothing_is_written_when_weights_and_config_do_not_belong_together(tmp_path: Path) -> None:
    contents = tiny_contents(tmp_path / "model")
    name = "bert.encoder.layer.0.output.dense.weight"
    cases = {
        "is missing": {key: value for key, value in contents.weights.items() if key != name},
        "the config says": contents.weights | {name: torch.zeros(3, 3)},
        "is not part of it": contents.weights | {"bert.surprise": torch.zeros(3)},
    }
    for message, weights in cases.items():
        with pytest.raises(UserError, match=message):
            release(replace(contents, weights=weights, masks=None), tmp_path / "out", QUIET)
    wrong = MaskSet({name: torch.ones(3, 3, dtype=torch.bool)})
    with pytest.raises(UserError, match="fits no weight"):
        release(replace(contents, masks=wrong), tmp_path / "out", QUIET)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_release_that_fails_its_verification_never_appears(tmp_path: Path) -> None:
    contents = tiny_contents(tmp_path / "model")
    contents.weights["bert.encoder.layer.0.output.dense.bias"][3] = float("nan")
    with pytest.raises(ReleaseError, match="NaN or infinite"):
        release(contents, tmp_path / "out", QUIET)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_card_says_how_it_was_pruned() -> None:
    assert method({"pruning": {"target_sparsity": 0.9}}) == (
        "cubic magnitude pruning of single weights, uniform allocation, during pre-training"
    )
    recipe = {
        "pruning": {
            "schedule": "one_shot",
            "structure": {"kind": "n_of_m", "keep": 2, "of": 4},
            "scorer": {"kind": "movement"},
            "allocation": {"kind": "global"},
        },
        "distillation": {"teacher": "t"},
    }
    assert method(recipe) == (
        "one-shot movement pruning of N:M patterns, global allocation, during pre-training with a teacher in "
        "the step"
    )


def test_the_card_keeps_paths_of_the_training_machine_to_itself() -> None:
    assert shown_setting("teacher", ["/home/me/a", "google/bert"]) == "teacher = a local folder, google/bert"
    assert "home" not in shown_setting("precomputed", "/home/me/logits")
