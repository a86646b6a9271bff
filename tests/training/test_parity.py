"""ZeRO training against a plain single-process torch loop, and against itself on other numbers of ranks."""

import json
from typing import Any

import pytest
import torch
from torch.func import functional_call

from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.data.loader import Slice, TrainingLoader
from sparse_pretrain.data.masking import IGNORED
from sparse_pretrain.models.loading import build_model
from sparse_pretrain.training.inputs import open_inputs
from sparse_pretrain.training.teacher_inputs import teacher_section
from sparse_pretrain.training.world import World
from tests.distributed import run_distributed
from tests.tiny import tiny_prepared, tiny_recipe

TOLERANCE = 1e-5
# Three updates that change masks (after steps 2, 4 and 6), then two steps behind the freeze.
PRUNING = {"target_sparsity": 0.8, "ramp_end": 4, "end": 6, "frequency": 2}


def train_recipes(world: World, recipes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Train every recipe on this world; return losses, masks and weights of each."""
    from sparse_pretrain.training.build import build_trainer

    results = []
    for values in recipes:
        recipe = TrainRecipe.model_validate(values)
        trainer, _ = build_trainer(recipe, open_inputs(recipe), world, "fp32", [])
        losses = []
        if trainer.pruner is not None:
            trainer.pruner.after_step(0)
        while trainer.step < recipe.steps:
            losses.append(trainer.train_step()[0].loss)
        masks = trainer.pruner.masks if trainer.pruner is not None else {}
        results.append(
            {
                "losses": losses,
                "masks": {name: mask.cpu().numpy() for name, mask in masks.items()},
                "weights": {
                    name: trainer.engine.full_master(name).cpu().numpy() for name in trainer.engine.shapes
                },
                "evaluation": trainer.evaluate(),
            }
        )
    return results


def reference(recipe: TrainRecipe, movement: bool = False, hard: bool = False) -> dict[str, Any]:
    """The method in plain torch: forward(w * mask), AdamW, clipping, teacher, rewinding, mask updates.

    With `movement`: scores -sum(gradient x weight) since the last update, one threshold for all weights.
    With `hard`: no regrowth, masters and moments of pruned weights are zero from each update on.
    """
    inputs = open_inputs(recipe)
    size = recipe.batch.global_size
    loader = TrainingLoader(
        inputs.train, Slice(size, size, 0, 1), recipe.masking, inputs.table, recipe.seed, True
    )
    torch.manual_seed(recipe.seed)
    model = build_model(inputs.config, recipe.model, next_sentence=True)
    section = teacher_section(recipe.distillation.teachers[0], recipe)
    teacher = build_model(inputs.teacher_configs[0], section, next_sentence=False).eval()
    weights = dict(model.named_parameters())
    encoder = [name for name in weights if name.startswith("bert.encoder") or name.startswith("bert.pooler")]
    prunable = [name for name in encoder if name.endswith("weight") and weights[name].ndim == 2]
    masks = {name: torch.ones_like(weights[name]) for name in prunable}
    moved = {name: torch.zeros_like(weights[name]) for name in prunable}
    optimizer = torch.optim.AdamW(
        [
            {"params": [weight for weight in weights.values() if weight.ndim >= 2], "weight_decay": 0.01},
            {"params": [weight for weight in weights.values() if weight.ndim < 2], "weight_decay": 0.0},
        ],
        lr=1.0,
    )
    losses = []
    for step in range(recipe.steps):
        (batch,) = loader.next_step()
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * rewound(step)
        masked = {name: weight * masks[name] if name in masks else weight for name, weight in weights.items()}
        arguments = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "token_type_ids": batch.token_type_ids,
        }
        for name in prunable if movement else ():
            masked[name].retain_grad()
        output = functional_call(model, masked, (), arguments)
        logits = output.prediction_logits.flatten(0, 1)[batch.positions]
        with torch.no_grad():
            followed = teacher(**arguments).logits.flatten(0, 1)[batch.positions]
        mlm = torch.nn.functional.cross_entropy(logits, batch.labels, ignore_index=IGNORED)
        relation = torch.nn.functional.cross_entropy(
            output.seq_relationship_logits, batch.next_sentence_labels
        )
        distance = torch.nn.functional.kl_div(
            torch.log_softmax(logits / 2, -1), torch.softmax(followed / 2, -1), reduction="batchmean"
        )
        loss = 0.5 * (mlm + relation) + 0.5 * 4 * distance
        optimizer.zero_grad()
        loss.backward()
        for name in prunable if movement else ():
            moved[name] -= masked[name].grad * weights[name].detach()
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        if step + 1 in (2, 4, 6):
            target = {2: 0.7, 4: 0.8, 6: 0.8}[step + 1]
            for name, mask in lowest_pruned(
                moved if movement else weights, prunable, target, movement
            ).items():
                masks[name] = mask
            moved = {name: torch.zeros_like(weights[name]) for name in prunable}
        if step + 1 == 6 or (hard and step + 1 in (2, 4)):
            for name in prunable:
                state = optimizer.state[weights[name]]
                for tensor in (weights[name].data, state["exp_avg"], state["exp_avg_sq"]):
                    tensor.mul_(masks[name])
    return {
        "losses": losses,
        "masks": {name: mask.bool().numpy() for name, mask in masks.items()},
        "weights": {name: weight.detach().numpy() for name, weight in weights.items()},
    }


def lowest_pruned(
    values: dict[str, Any], prunable: list[str], target: float, movement: bool
) -> dict[str, torch.Tensor]:
    """Masks that prune the lowest: |w| of every weight for itself, or scores over all weights."""
    flat = {name: values[name].detach().flatten() for name in prunable}
    if not movement:
        orders = {
            name: score.abs().argsort(stable=True)[: round(target * len(score))]
            for name, score in flat.items()
        }
        return {
            name: torch.ones(len(flat[name])).index_fill(0, order, 0).reshape(values[name].shape)
            for name, order in orders.items()
        }
    whole = torch.cat(list(flat.values()))
    lowest = whole.argsort(stable=True)[: round(target * len(whole))]
    keep = torch.ones(len(whole)).index_fill(0, lowest, 0).split([len(score) for score in flat.values()])
    return {name: part.reshape(values[name].shape) for name, part in zip(prunable, keep, strict=True)}


def rewound(step: int) -> float:
    """Rewinding of a run of 8 steps, 1 of warm-up, ramp 0 to 4, interval 2, by hand."""
    return [0.0, 3 / 3, 4 / 3, 3 / 3, 4 / 3, 3 / 3, 2 / 3, 1 / 3][step]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> TrainRecipe:
    """A pruning recipe with a random teacher, pairs with NSP, gradient accumulation 2 on two ranks."""
    folder = tmp_path_factory.mktemp("parity")
    data = tiny_prepared(folder / "data")
    base = tiny_recipe(data, folder / "run")
    torch.manual_seed(7)
    inputs = open_inputs(base)
    teacher = build_model(inputs.config, base.model, next_sentence=False)
    teacher.save_pretrained(folder / "teacher")
    return tiny_recipe(
        data,
        folder / "run",
        pruning=PRUNING,
        distillation={"teacher": str(folder / "teacher")},
        learning_rate={"kind": "rewinding", "warmup": 0.125},
    )


def with_stage(recipe: TrainRecipe, stage: int, **changes: Any) -> dict[str, Any]:
    """The recipe's values at another ZeRO stage, as plain JSON values."""
    values: dict[str, Any] = json.loads(recipe.model_dump_json())
    return values | {"engine": {"stage": stage, "config": None}} | changes


def largest_difference(first: dict[str, Any], second: dict[str, Any]) -> float:
    """The largest absolute difference between two sets of weights."""
    assert first["weights"].keys() == second["weights"].keys()
    return max(
        float(abs(first["weights"][name] - second["weights"][name]).max()) for name in first["weights"]
    )


def check_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Same losses, same masks, same weights."""
    assert found["losses"] == pytest.approx(expected["losses"], abs=TOLERANCE)
    assert found["masks"].keys() == expected["masks"].keys()
    for name, mask in expected["masks"].items():
        assert (found["masks"][name] == mask).all(), name
    assert largest_difference(found, expected) < TOLERANCE


def test_two_ranks_match_plain_torch_at_every_stage(recipe: TrainRecipe) -> None:
    """Losses, masks and weights of ZeRO 1, 2 and 3, of a sharded teacher and of packed masks, equal the
    reference's.
    """
    sharded = {**json.loads(recipe.model_dump_json())["distillation"], "placement": "sharded"}
    recipes = [
        *(with_stage(recipe, stage) for stage in (1, 2, 3)),
        with_stage(recipe, 3, distillation=sharded),
        with_stage(recipe, 2, pruning=PRUNING | {"masks": {"packed": True}}),
        with_stage(recipe, 3, pruning=PRUNING | {"masks": {"packed": True}}),
    ]
    expected = reference(recipe)
    assert len(set(expected["losses"])) == recipe.steps
    for result in run_distributed(train_recipes, 2, recipes):
        for found in result:
            check_same(found, expected)


def test_movement_and_hard_pruning_match_plain_torch_at_every_stage(recipe: TrainRecipe) -> None:
    """Movement with one global threshold: scores see the gradients of pruned weights, clipping and Adam do not.

    Without regrowth: masters and moments of pruned weights become zero at every update.
    """
    movement = PRUNING | {"scorer": {"kind": "movement"}, "allocation": {"kind": "global"}}
    hard = PRUNING | {"regrowth": False}
    recipes = [
        with_stage(recipe, stage, pruning=pruning) for stage in (1, 2, 3) for pruning in (movement, hard)
    ]
    expected = [reference(recipe, movement=True), reference(recipe, hard=True)] * 3
    for result in run_distributed(train_recipes, 2, recipes):
        for found, wanted in zip(result, expected, strict=True):
            check_same(found, wanted)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_two_and_four_ranks_have_the_same_trajectory(recipe: TrainRecipe) -> None:
    """The global batch decides, not how it is cut into ranks and micro-batches."""
    one = run_distributed(train_recipes, 1, [with_stage(recipe, 2)])[0][0]
    two = run_distributed(train_recipes, 2, [with_stage(recipe, 1)])[0][0]
    four = run_distributed(train_recipes, 4, [with_stage(recipe, 3), with_stage(recipe, 2)])[0]
    for other in (two, *four):
        check_same(other, one)
        assert other["evaluation"] == pytest.approx(one["evaluation"], abs=TOLERANCE)
