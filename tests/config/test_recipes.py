"""Every shipped recipe and DeepSpeed file, and what is said of a wrong one."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from data_prep.recipe import PrepareRecipe
from sparse_pretrain.cli import app
from sparse_pretrain.config.load import load_recipe, to_yaml
from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.errors import UserError
from sparse_pretrain.shipped import shipped_folder, shipped_recipes
from sparse_pretrain.training.deepspeed_config import deepspeed_config
from sparse_pretrain.training.learning_rate import learning_rate_at

TRAIN_RECIPES = [path.stem for path in shipped_recipes() if not path.stem.startswith(("data-", "finetune-"))]
DATA_RECIPES = [path.stem for path in shipped_recipes() if path.stem.startswith("data-")]
TINY = "train-tiny"


@pytest.mark.parametrize("name", TRAIN_RECIPES)
def test_every_training_recipe_dry_runs_through_the_command_line(name: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["train", name, "--dry-run", "--json", f"output={tmp_path / 'run'}"])
    assert done.exit_code == 0, done.output
    numbers = json.loads(done.stdout)
    assert numbers["parameters"] > 0
    assert not (tmp_path / "run").exists()


def test_the_papers_recipes_say_what_the_paper_says() -> None:
    for name, sparsity in (("bert-base-85", 0.85), ("bert-large-90", 0.9), ("distilbert-90", 0.9)):
        recipe = load_recipe(name, [], TrainRecipe)
        assert recipe.pruning is not None
        assert recipe.distillation is not None
        pruning, distillation = recipe.pruning, recipe.distillation
        assert (recipe.steps, recipe.batch.global_size, recipe.warmup_steps) == (100_000, 256, 1_000)
        assert (pruning.begin, pruning.ramp_end, pruning.end, pruning.frequency) == (0, 50_000, 80_000, 1_000)
        assert (pruning.initial_sparsity, pruning.target_sparsity) == (0.0, sparsity)
        assert (distillation.mlm_weight, distillation.kd_weight, distillation.temperature) == (0.5, 0.5, 2.0)
        assert recipe.learning_rate.kind == "rewinding"


@pytest.mark.parametrize(("name", "sparsity"), [("bert-base-90-global", 0.9), ("bert-base-97-global", 0.97)])
def test_the_second_recipe_says_what_oberts_upstream_recipe_says(name: str, sparsity: float) -> None:
    recipe = load_recipe(name, [], TrainRecipe)
    assert recipe.pruning is not None
    assert recipe.distillation is not None
    pruning, distillation = recipe.pruning, recipe.distillation
    epoch = recipe.steps // 3
    # 3.3 billion words in rows of 512: the comment's arithmetic.
    assert epoch == pytest.approx(3.3e9 * 1.30 * 0.95 / 510 / recipe.batch.global_size, rel=1e-3)
    quarters = {"cycle": recipe.learning_rate.cycle_steps, "mask update": pruning.frequency}
    assert quarters == {"cycle": epoch // 4, "mask update": epoch // 4}
    assert (pruning.begin, pruning.ramp_end, pruning.last_update) == (0, 2.75 * epoch, 2.75 * epoch)
    assert (pruning.schedule, pruning.allocation.kind, pruning.structure.kind) == (
        "cubic",
        "global",
        "element",
    )
    assert (pruning.initial_sparsity, pruning.target_sparsity) == (0.7, sparsity)
    assert (distillation.mlm_weight, distillation.kd_weight, distillation.temperature) == (0.0, 1.0, 5.5)
    rates = [learning_rate_at(step, recipe) for step in (0, epoch // 4 - 1, epoch // 4, recipe.steps - 1)]
    assert rates == pytest.approx([5e-4, 5e-6, 5e-4, 5e-6], abs=1e-7)


def test_the_structured_recipes_keep_the_papers_steps() -> None:
    paper = load_recipe("bert-base-85", [], TrainRecipe).pruning
    assert paper is not None
    for name, kind in (("bert-base-2-of-4", "n_of_m"), ("bert-base-block-4x1", "block")):
        pruning = load_recipe(name, [], TrainRecipe).pruning
        assert pruning is not None
        assert pruning.structure.kind == kind
        changed = {"structure": paper.structure, "target_sparsity": paper.target_sparsity}
        assert pruning.model_copy(update=changed) == paper


@pytest.mark.parametrize("name", DATA_RECIPES)
def test_every_data_recipe_loads(name: str) -> None:
    recipe = load_recipe(name, [], PrepareRecipe)
    assert (recipe.format == "packed") == (name.endswith("-packed") or name == "data-demo")


def test_recipes_train_on_data_that_a_shipped_recipe_prepares() -> None:
    """A data path that no data recipe writes would send a reader looking."""
    prepared = {load_recipe(name, [], PrepareRecipe).output for name in DATA_RECIPES}
    wanted = {load_recipe(name, [], TrainRecipe).data.path for name in TRAIN_RECIPES}
    assert wanted <= prepared


def test_prunable_weights_of_bert_base() -> None:
    """12 layers x (4 x 768^2 + 2 x 768 x 3072) + pooler 768^2: the paper's 85 M."""
    done = CliRunner().invoke(app, ["train", "bert-base-85", "--dry-run", "--json"])
    numbers = json.loads(done.stdout)
    assert numbers["prunable_weights"] == 12 * (4 * 768**2 + 2 * 768 * 3072) + 768**2
    assert numbers["prunable_matrices"] == 73


def test_resolved_recipe_reads_back_equal(tmp_path: Path) -> None:
    recipe = load_recipe("bert-base-90", ["seed=7", "pruning.regrowth=false"], TrainRecipe)
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(recipe), encoding="utf-8")
    assert load_recipe(path, [], TrainRecipe) == recipe


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_deepspeed_file_is_accepted(stage: int, precision: str) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    recipe = load_recipe(TINY, [f"engine.stage={stage}"], TrainRecipe)
    config = deepspeed_config(recipe, precision, 1)  # type: ignore[arg-type]
    parsed = DeepSpeedConfig(config)
    assert parsed.zero_config.stage == stage
    assert parsed.gradient_accumulation_steps == 2
    assert parsed.gradient_allreduce_op == ("mean" if stage == 3 else "sum")
    assert parsed.grad_accum_dtype == ("fp32" if precision == "bf16" and stage > 1 else None)


def test_no_deepspeed_file_is_left_over() -> None:
    names = {path.name for path in shipped_folder("ds_configs").iterdir()}
    expected = {
        f"zero{stage}-{precision}.json" for stage in (1, 2, 3) for precision in ("fp32", "bf16", "fp16")
    }
    assert names == expected


WRONG = {
    "pruning.target_sparsity=90": "pruning.target_sparsity = 90: should be less than 1. Did you mean 0.9?",
    "pruning.target_sparsity=1.5": "pruning.target_sparsity = 1.5: should be less than 1",
    "pruning.taget_sparsity=0.9": "pruning.taget_sparsity: unknown key; did you mean 'target_sparsity'?",
    "batch.mikro_size=3": "batch.mikro_size: unknown key; did you mean 'micro_size'?",
    "steps=many": "steps = 'many': should be a valid integer",
    "engine.stage=4": "engine.stage = 4: should be 1, 2 or 3",
    "pruning.end=200": "pruning.end = 200 lies beyond steps = 10",
    "pruning.frequency=5": "would never be reached",
    "learning_rate.warmup=0.9": "shorten the ramp or the warm-up",
    "learning_rate.kind=cyclic": "learning_rate: kind = cyclic needs cycle_steps",
    "pruning.schedule=constant": "pruning.schedule = constant has none: use linear, constant or cyclic",
    "nonsense": "write it as key=value",
}


@pytest.mark.parametrize(("override", "expected"), WRONG.items())
def test_a_wrong_key_or_value_is_explained(override: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(TINY, [override], TrainRecipe)
    assert expected in str(caught.value)
    if "=" in override:
        assert "train-tiny.yaml: " in str(caught.value)


def test_an_unknown_key_in_a_mapping_of_tagged_sections_is_explained_by_that_section() -> None:
    with pytest.raises(UserError, match=r"sources\.dump\.paht: unknown key; did you mean 'path'"):
        load_recipe("data-tiny", ["sources.dump.paht=x"], PrepareRecipe)


def test_a_broken_interpolation_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("steps: ${oc.env:NO_SUCH_VARIABLE_HERE}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"recipe\.yaml: .*NO_SUCH_VARIABLE_HERE"):
        load_recipe(path, [], TrainRecipe)


def test_all_mistakes_are_reported_at_once() -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(TINY, ["steps=-1", "seed=x", "modell.source=a"], TrainRecipe)
    assert len(str(caught.value).splitlines()) == 3


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such recipe"):
        load_recipe(tmp_path / "nothing.yaml", [], TrainRecipe)
    broken = tmp_path / "broken.yaml"
    broken.write_text("steps: [1, 2\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"broken\.yaml: not valid YAML"):
        load_recipe(broken, [], TrainRecipe)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"train_batch_size": 8, "zero_optimization": {"stage": 2}}, "set batch.global_size in the recipe"),
        ({"zero_optimization": {"stage": 1}}, "the recipe says engine.stage = 2"),
        ({"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}}, "the run's precision is fp32"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}, "not supported"),
        (
            {"zero_optimization": {"stage": 2}, "bf16": {"enabled": False, "check_grad_overflow": False}},
            "steps with NaN gradients would be applied",
        ),
        (
            {"zero_optimization": {"stage": 2}, "data_types": {"grad_accum_dtype": "fp32"}},
            r"data_types\.grad_accum_dtype: is fp32 wherever it matters",
        ),
    ],
)
def test_own_deepspeed_files_must_not_contradict_the_recipe(
    tmp_path: Path, content: object, expected: str
) -> None:
    path = tmp_path / "own.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    recipe = load_recipe(TINY, [f"engine.config={path}"], TrainRecipe)
    with pytest.raises(UserError, match=expected):
        deepspeed_config(recipe, "fp32", 1)
