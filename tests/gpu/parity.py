"""Does a GPU train what plain torch trains on a CPU? Losses, masks and weights of a tiny pruning run with a teacher.

python -m tests.gpu.parity      one rank, fp32, ZeRO 1, 2 and 3, packed masks, compiled layers; JSON
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from sparse_pretrain.models.loading import build_model
from sparse_pretrain.training.inputs import open_inputs
from sparse_pretrain.training.world import join_world
from tests.tiny import tiny_prepared, tiny_recipe
from tests.training.test_parity import PRUNING, largest_difference, reference, train_recipes, with_stage

# Sums in another order, and other approximations of exp and tanh.
TOLERANCE = 1e-3


def compare(found: dict[str, Any], expected: dict[str, Any]) -> dict[str, float]:
    """Return the largest differences of losses and weights, and how many bits of the masks differ."""
    losses = zip(found["losses"], expected["losses"], strict=True)
    return {
        "losses": max(abs(mine - its) for mine, its in losses),
        "weights": largest_difference(found, expected),
        "mask_bits": sum(
            int((found["masks"][name] != mask).sum()) for name, mask in expected["masks"].items()
        ),
    }


def main() -> int:
    """Print the differences; return 1 when one is too large, or there is no GPU."""
    world = join_world()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = tiny_prepared(folder / "data")
        base = tiny_recipe(data, folder / "run")
        torch.manual_seed(7)
        build_model(open_inputs(base).config, base.model, next_sentence=False).save_pretrained(
            folder / "teacher"
        )
        recipe = tiny_recipe(
            data,
            folder / "run",
            pruning=PRUNING,
            distillation={"teacher": str(folder / "teacher")},
            learning_rate={"kind": "rewinding", "warmup": 0.125},
        )
        settings = {
            **{f"zero-{stage}": with_stage(recipe, stage) for stage in (1, 2, 3)},
            "packed masks": with_stage(recipe, 2, pruning=PRUNING | {"masks": {"packed": True}}),
            "compiled": with_stage(recipe, 2, engine={"stage": 2, "compile": True}),
        }
        expected = reference(recipe)
        results = train_recipes(world, list(settings.values()))
    differences = {name: compare(found, expected) for name, found in zip(settings, results, strict=True)}
    print(json.dumps({"device": str(world.device), "differences": differences}, indent=2))
    within = all(one["losses"] < TOLERANCE for one in differences.values())
    return 0 if within and world.device.type == "cuda" else 1


if __name__ == "__main__":
    sys.exit(main())
