"""Which settings may differ between two starts of a run: each is decided on purpose."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel

from sparse_pretrain.config.changes import HARMLESS, OPEN, is_harmless, recipe_changes
from sparse_pretrain.config.recipe import TrainRecipe
from tests.tiny import tiny_recipe

PRUNING = {"target_sparsity": 0.8, "ramp_end": 4, "end": 4, "frequency": 2}
DISTILLATION = {"teacher": "a/teacher"}

# A new section or setting at the top: may it differ without changing what is trained? Decide, then add it.
WHOLLY_HARMLESS = {
    "output": "where it writes",
    "precision": "a cluster without bf16 may go on with what one with it began",
    "engine": "how it is spread over machines",
    "checkpoint": "what it writes when",
    "evaluation": "what it measures",
    "guard": "when it gives up",
    "logging": "what it logs",
}
PARTLY_HARMLESS = {
    "model": {"source", "pretrained", "architecture", "attention"},
    "data": {"path", "mix"},
    "batch": {"micro_size"},
    "pruning": {"masks"},
    "distillation": {"placement", "precomputed", "teacher"},
}
BREAKING = {"seed", "steps", "masking", "optimizer", "learning_rate"}


def stored(**changes: Any) -> dict[str, Any]:
    """A recipe as a checkpoint stores it."""
    recipe = tiny_recipe(Path("/data"), Path("/run"), **{k: v for k, v in changes.items() if k != "data"})
    values = recipe.model_dump(mode="json") | {k: v for k, v in changes.items() if k == "data"}
    return TrainRecipe.model_validate(values).model_dump(mode="json")


def changed(before: dict[str, Any], after: dict[str, Any]) -> dict[str, bool]:
    """Return the keys that differ, and whether each breaks."""
    return {change.key: change.breaks for change in recipe_changes(before, after)}


def test_each_section_is_decided_on_purpose() -> None:
    """Fails when a section or a setting appears: think about what happens when it differs, then list it."""
    decided = [*WHOLLY_HARMLESS, *PARTLY_HARMLESS, *BREAKING]
    assert sorted(decided) == sorted(TrainRecipe.model_fields)
    harmless = {*WHOLLY_HARMLESS} | {
        f"{section}.{key}" for section, keys in PARTLY_HARMLESS.items() for key in keys
    }
    assert harmless == set(HARMLESS)
    for section, keys in PARTLY_HARMLESS.items():
        for model in models_in(TrainRecipe.model_fields[section].annotation):
            assert keys <= set(model.model_fields), section


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the sections inside an annotation such as `X | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


def open_mappings(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the keys of settings that are mappings with keys of the author's choice."""
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        if any(get_origin(part) is dict for part in (field.annotation, *get_args(field.annotation))):
            yield key
        for inner in models_in(field.annotation):
            yield from open_mappings(inner, f"{key}.")


def test_every_mapping_with_free_keys_is_known() -> None:
    assert set(open_mappings(TrainRecipe)) == set(OPEN)


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "bf16"},
        {"data": {"path": "/moved/data"}},
        {"engine": {"stage": 3, "config": "/own.json"}},
        {"batch": {"global_size": 8, "micro_size": 4}},
        {"checkpoint": {"every": 5, "keep": {"last": 7, "every": 100}, "asynchronous": False}},
        {"evaluation": {"every": 7, "rows": 8}},
        {"guard": {"skipped_in_a_row": 2}},
        {"logging": {"every": 3}},
        {"pruning": PRUNING | {"masks": {"packed": True}}},
        {"distillation": {"teacher": ["/elsewhere/teacher"], "placement": "sharded"}},
        {"model": {**stored()["model"], "attention": "eager"}},
    ],
)
def test_settings_that_do_not_change_what_is_trained_may_differ(change: dict[str, Any]) -> None:
    base: dict[str, Any] = {"pruning": PRUNING, "distillation": DISTILLATION}
    found = changed(stored(**base), stored(**(base | change)))
    assert found
    assert not any(found.values()), found


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"seed": 43}, "seed"),
        ({"steps": 9}, "steps"),
        ({"masking": {"whole_word": True}}, "masking.whole_word"),
        ({"batch": {"global_size": 16, "micro_size": 2}}, "batch.global_size"),
        ({"optimizer": {"learning_rate": 2e-3}}, "optimizer.learning_rate"),
        ({"learning_rate": {"kind": "constant"}}, "learning_rate.kind"),
        ({"pruning": PRUNING | {"target_sparsity": 0.9}}, "pruning.target_sparsity"),
        ({"pruning": PRUNING | {"scorer": {"kind": "movement"}}}, "pruning.scorer.kind"),
        ({"pruning": PRUNING | {"include": ["query"]}}, "pruning.include"),
        ({"distillation": DISTILLATION | {"temperature": 3.0}}, "distillation.temperature"),
        ({"model": {**stored()["model"], "dropout": 0.1}}, "model.dropout"),
    ],
)
def test_settings_that_change_what_is_trained_break(change: dict[str, Any], key: str) -> None:
    base: dict[str, Any] = {"pruning": PRUNING, "distillation": DISTILLATION}
    before, after = stored(**base), stored(**(base | change))
    assert changed(before, after)[key]
    assert changed(after, before)[key]


def test_a_recipe_does_not_differ_from_itself() -> None:
    recipe = stored(pruning=PRUNING, distillation=DISTILLATION)
    assert recipe_changes(recipe, recipe) == []


@pytest.mark.parametrize(("name", "section"), [("pruning", PRUNING), ("distillation", DISTILLATION)])
def test_a_section_that_comes_or_goes_is_told_by_its_keys(name: str, section: dict[str, Any]) -> None:
    without, with_it = stored(), stored(**{name: section})
    for before, after in ((without, with_it), (with_it, without)):
        found = recipe_changes(before, after)
        assert all(change.key.startswith(f"{name}.") for change in found)
        assert any(change.breaks for change in found)


def test_a_setting_that_an_older_program_did_not_know_is_no_change() -> None:
    before, after = stored(pruning=PRUNING), stored(pruning=PRUNING)
    del before["guard"], before["seed"], before["checkpoint"]["compression"], before["pruning"]["structure"]
    assert recipe_changes(before, after) == []
    # What an older program knew and this one does not is told.
    assert changed(after, before)["seed"]


@pytest.mark.parametrize("key", ["hidden_act", "layer_norm_eps"])
def test_a_key_that_is_new_in_a_mapping_with_free_keys_is_a_change(key: str) -> None:
    """No older program: the author had not set it. The weights have the same shapes, and it trains another model."""
    before, after = stored(), stored()
    after["model"]["config"][key] = "relu"
    assert changed(before, after) == {f"model.config.{key}": True}
    assert changed(after, before) == {f"model.config.{key}": True}


def test_an_empty_mapping_that_is_filled_is_told_by_its_keys() -> None:
    before, after = stored(pruning=PRUNING), stored(pruning=PRUNING)
    after["pruning"]["table"] = {"5": 0.5}
    assert changed(before, after) == changed(after, before) == {"pruning.table.5": True}


def test_a_change_is_shown_with_both_values() -> None:
    (change,) = recipe_changes(stored(seed=1), stored(seed=2))
    assert str(change) == "seed: 1 -> 2"
    assert is_harmless("checkpoint.keep.last")
    assert not is_harmless("checkpoints")
    assert not is_harmless("data")
