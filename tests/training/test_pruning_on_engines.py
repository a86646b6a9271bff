"""Every structure and allocation over real ZeRO engines: the masks of a single process on whole weights."""

import json
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from sparse_pretrain.config.pruning import PruningSection
from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.pruning.pruner import Pruner
from sparse_pretrain.pruning.ranks import OneRank
from sparse_pretrain.pruning.scorers.build import build_scorer
from sparse_pretrain.pruning.structures.build import build_structure
from sparse_pretrain.training.inputs import Inputs, open_inputs
from sparse_pretrain.training.world import World
from tests.distributed import run_distributed
from tests.pruning.memory_weights import MemoryWeights
from tests.tiny import tiny_prepared, tiny_recipe

STRUCTURES: list[dict[str, Any]] = [
    {"kind": "element"},
    {"kind": "block", "rows": 4, "columns": 1, "pool": "mean"},
    {"kind": "block", "rows": 1, "columns": 4, "pool": "max"},
    {"kind": "block", "rows": 16, "columns": 16, "pool": "l2"},
    {"kind": "n_of_m", "keep": 2, "of": 4},
    {"kind": "n_of_m", "keep": 1, "of": 2},
    {"kind": "n_of_m", "keep": 4, "of": 8},
    {"kind": "rows"},
    {"kind": "columns"},
    {"kind": "coupled", "of": ["heads", "channels"]},
]
ALLOCATIONS: list[dict[str, Any]] = [
    {"kind": "uniform"},
    {"kind": "global"},
    {"kind": "global", "groups": {"attention": ["attention"]}},
    {"kind": "global", "minimum_kept": 0.3},
    {"kind": "table", "targets": {"query|output.dense": 0.3}},
]
SCORERS: list[dict[str, Any]] = [
    {"kind": "magnitude"},
    {"kind": "magnitude", "exclude_weight_decay": True},
    {"kind": "random", "seed": 5},
]


def sections() -> list[dict[str, Any]]:
    """Every structure with every allocation that it allows, and every scorer once."""
    found = []
    for structure in STRUCTURES:
        fixed = structure["kind"] == "n_of_m"
        target = 1 - structure["keep"] / structure["of"] if fixed else 0.6
        for allocation in ALLOCATIONS[:3] if fixed else ALLOCATIONS:
            found.append({"target_sparsity": target, "structure": structure, "allocation": allocation})
    found += [{"target_sparsity": 0.6, "scorer": scorer} for scorer in SCORERS[1:]]
    return found


def prune_all(world: World, recipes: list[dict[str, Any]], settings: list[dict[str, Any]]) -> list[str]:
    """Train two steps, then draw masks by every section; return what differs from a single process."""
    from sparse_pretrain.training.build import build_trainer

    differences = []
    for values in recipes:
        recipe = TrainRecipe.model_validate(values)
        inputs = open_inputs(recipe)
        trainer, _ = build_trainer(recipe, inputs, world, "fp32", [])
        for _ in range(2):
            trainer.train_step()
        engine = trainer.engine
        whole = {name: engine.full_master(name) for name in inputs.prunable}
        for setting in settings:
            section = PruningSection.model_validate(
                {"schedule": "constant", "end": 1, "frequency": 1, **setting}
            )
            found = draw(section, inputs, engine)
            expected = draw(section, inputs, MemoryWeights(whole, OneRank()))
            if not all(found[name].equal(expected[name]) for name in expected):
                differences.append(f"stage {recipe.engine.stage}: {setting}")
    return differences


def draw(section: PruningSection, inputs: Inputs, weights: Any) -> dict[str, Tensor]:
    """Masks of one update."""
    structure = build_structure(section.structure, inputs.coupled)
    pruner = Pruner(section, inputs.prunable, weights, structure, build_scorer(section.scorer), 0.01)
    update = pruner.after_step(0)
    assert update is not None
    assert 0.1 < update.sparsity <= section.target_sparsity + 1e-3
    return dict(pruner.masks)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_masks_equal_a_single_process_s_at_every_stage(tmp_path: Path, size: int) -> None:
    data = tiny_prepared(tmp_path / "data")
    pruning = {"target_sparsity": 0.5, "begin": 4, "ramp_end": 8, "end": 8, "frequency": 4}
    recipe = tiny_recipe(
        data,
        tmp_path / "run",
        batch={"global_size": 6, "micro_size": 1},
        pruning=pruning | {"structure": {"kind": "coupled"}},
    )
    values = json.loads(recipe.model_dump_json())
    recipes = [values | {"engine": {"stage": stage, "config": None}} for stage in (1, 2, 3)]
    for differences in run_distributed(prune_all, size, recipes, sections()):
        assert differences == []
    assert len(sections()) >= 40


def test_the_sections_cover_every_structure_and_allocation() -> None:
    kinds = {
        (section.get("structure", {}).get("kind"), section.get("allocation", {}).get("kind"))
        for section in sections()
    }
    assert {("block", "global"), ("coupled", "table"), ("n_of_m", "global"), ("rows", "uniform")} <= kinds
