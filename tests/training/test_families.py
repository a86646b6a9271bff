"""BERT, DistilBERT and RoBERTa train and prune, from scratch and from pre-trained folders."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM

from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.training.callback import Callback, StepReport
from sparse_pretrain.training.inputs import open_inputs
from sparse_pretrain.training.world import World
from tests.distributed import run_distributed
from tests.tiny import VOCABULARY, tiny_prepared, tiny_recipe

WIDTHS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
# Rows have 32 tokens: enough positions, with RoBERTa's numbering that starts behind the pad token's id.
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {"model_type": "bert", "max_position_embeddings": 32, **WIDTHS},
    "distilbert": {
        "model_type": "distilbert",
        "max_position_embeddings": 32,
        **{"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48},
    },
    "roberta": {"model_type": "roberta", "max_position_embeddings": 33, "pad_token_id": 0, **WIDTHS},
}
# Six Linear layers in each of two encoder layers; BERT's pooler comes with its next-sentence head.
MATRICES = {"bert": 13, "distilbert": 12, "roberta": 12}
PRUNING = {"target_sparsity": 0.75, "ramp_end": 2, "end": 2, "frequency": 1}


class Reports(Callback):
    """Keeps every step's report."""

    def __init__(self) -> None:
        self.steps: list[StepReport] = []

    def on_step(self, report: StepReport) -> None:
        self.steps.append(report)


def train_all(world: World, recipes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Train each recipe to its end; return its reports and what became of its weights."""
    from sparse_pretrain.training.build import build_trainer

    results = []
    for values in recipes:
        recipe = TrainRecipe.model_validate(values)
        reports = Reports()
        trainer, saver = build_trainer(recipe, open_inputs(recipe), world, "fp32", [reports])
        first = {name: trainer.engine.full_master(name).clone() for name in trainer.engine.shapes}
        assert trainer.run(saver)
        assert trainer.pruner is not None
        masks = trainer.pruner.masks
        results.append(
            {
                "steps": reports.steps,
                "first": {name: weight.numpy() for name, weight in first.items()},
                "moved": sum(
                    bool((trainer.engine.full_master(name) != weight).any()) for name, weight in first.items()
                ),
                "zeros": {name: (int((~mask).sum()), mask.numel()) for name, mask in masks.items()},
                "frozen": trainer.pruner.frozen,
                "evaluation": trainer.metrics,
            }
        )
    return results


def check(result: dict[str, Any], family: str, pretrained: bool) -> None:
    """Three finite steps, every encoder matrix at the target, all weights in training."""
    assert len(result["steps"]) == 3
    assert all(math.isfinite(report.loss) for report in result["steps"])
    assert result["steps"][0].mlm_loss == pytest.approx(math.log(len(VOCABULARY)), abs=0.3)
    pairs = family == "bert"
    assert all((report.nsp_loss is not None) == pairs for report in result["steps"])
    assert ("validation_nsp_accuracy" in result["evaluation"]) == pairs
    assert len(result["zeros"]) == MATRICES[family]
    for name, (zeros, numel) in result["zeros"].items():
        assert abs(zeros - PRUNING["target_sparsity"] * numel) <= 1, name
    assert result["frozen"]
    assert result["moved"] == len(result["first"]), f"some weight of {family} ({pretrained=}) never moved"


def pretrained_folder(family: str, folder: Path) -> dict[str, torch.Tensor]:
    """Save a model without a next-sentence head, as hubs have them; return its weights."""
    torch.manual_seed(1)
    config = AutoConfig.for_model(**FAMILIES[family], vocab_size=len(VOCABULARY))
    model = AutoModelForMaskedLM.from_config(config)
    model.save_pretrained(folder)
    return dict(model.state_dict())


@pytest.mark.slow
def test_each_family_trains_and_prunes_from_scratch_and_from_a_folder(tmp_path: Path) -> None:
    data = tiny_prepared(tmp_path / "data")
    saved = {family: pretrained_folder(family, tmp_path / family) for family in FAMILIES}
    shared: dict[str, Any] = {"steps": 3, "pruning": PRUNING, "batch": {"global_size": 8, "micro_size": 4}}
    models = [(family, {"config": config, "dropout": 0.1}) for family, config in FAMILIES.items()] + [
        (family, {"source": str(tmp_path / family), "dropout": 0.1}) for family in FAMILIES
    ]
    recipes = [
        json.loads(tiny_recipe(data, tmp_path / f"run-{number}", model=model, **shared).model_dump_json())
        for number, (_, model) in enumerate(models)
    ]
    (results,) = run_distributed(train_all, 1, recipes)
    for (family, model), result in zip(models, results, strict=True):
        check(result, family, pretrained="source" in model)
    for family, result in zip(FAMILIES, results[len(FAMILIES) :], strict=True):
        taken = [name for name in result["first"] if name in saved[family]]
        assert len(taken) >= len(result["first"]) - 4  # BERT's new pooler and next-sentence head
        for name in taken:
            assert (result["first"][name] == saved[family][name].numpy()).all(), name
