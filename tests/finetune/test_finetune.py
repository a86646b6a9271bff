"""Whole fine-tuning runs of tiny models, and everything that must stop one before it starts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from sparse_pretrain.checkpoint.inspect import inspect
from sparse_pretrain.config.load import load_recipe, to_yaml
from sparse_pretrain.errors import UserError
from sparse_pretrain.finetune.evaluate import evaluate
from sparse_pretrain.finetune.mask_lock import nonzero_outside
from sparse_pretrain.finetune.progress import ProgressReport
from sparse_pretrain.finetune.recipe import FinetuneRecipe
from sparse_pretrain.finetune.train import finetune
from sparse_pretrain.finetune.unfinished import newest_epoch
from sparse_pretrain.pruning.masks import MASK_FILE, MaskSet
from sparse_pretrain.shipped import shipped_recipes
from sparse_pretrain.telemetry.metrics import read_rows
from tests.finetune.models import SPARSITY, pairs, recipe

SHIPPED = [path.stem for path in shipped_recipes() if path.stem.startswith("finetune-")]


def test_classification_learns_keeps_every_zero_and_measures_the_same_again(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    console = Console(record=True, width=120, force_terminal=False)
    result = finetune(recipe(folder, tmp_path / "run", weight_decay=0.1), console)
    printed, shown = capfd.readouterr(), console.export_text()
    noise = [line for line in (printed.out + printed.err).splitlines() if line not in shown]
    assert noise == []
    assert result.score > 0.9
    assert (result.masks, result.nonzero_outside_masks) == ("file", 0)
    assert result.examples == {"train": 180, "validation": 60}
    masks = MaskSet.load(result.model_folder / MASK_FILE)
    assert masks.total_sparsity() == pytest.approx(SPARSITY, abs=1e-3)
    model = AutoModelForSequenceClassification.from_pretrained(result.model_folder)
    assert model.config.id2label == {0: "bad", 1: "good"}
    assert sum(nonzero_outside(model, masks).values()) == 0
    assert inspect(result.output)["check"]["ok"]
    again = evaluate(result.output, precision="fp32")
    assert again["metrics"] == pytest.approx(result.metrics["validation"])
    assert again["nonzero_outside_masks"] == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["score"] == result.score
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows].count("evaluation") == 3
    assert rows[0]["loss"] > 0
    assert load_recipe(tmp_path / "run" / "recipe.yaml", [], FinetuneRecipe).training.weight_decay == 0.1


def test_regression_on_pairs_with_masks_read_from_zeros(folder: Path, tmp_path: Path) -> None:
    sparse = tmp_path / "no-mask-file"
    sparse.mkdir()
    for path in (folder / "sparse").iterdir():
        if path.name not in (MASK_FILE, "sparsity.json"):
            (sparse / path.name).write_bytes(path.read_bytes())
    settings = recipe(folder, tmp_path / "run", str(sparse), pairs(folder), epochs=2, precision="bf16")
    result = finetune(settings, Console(quiet=True))
    assert (result.masks, result.nonzero_outside_masks, result.metric) == ("zeros", 0, "spearman")
    assert set(result.metrics["validation"]) == {"pearson", "spearman", "rmse"}
    assert result.metrics["validation"]["rmse"] < 2.5
    stored = MaskSet.load(result.model_folder / MASK_FILE)
    assert stored.digest() == MaskSet.load(folder / "sparse" / MASK_FILE).digest()


def test_sentences_encoded_separately_are_scored_by_their_cosine(folder: Path, tmp_path: Path) -> None:
    task = pairs(folder) | {"pair_encoding": "separate"}
    result = finetune(recipe(folder, tmp_path / "run", task=task), Console(quiet=True))
    assert result.score > 0.5
    assert (result.masks, result.nonzero_outside_masks) == ("file", 0)
    assert evaluate(result.output, precision="fp32")["metrics"] == pytest.approx(
        result.metrics["validation"], abs=1e-6
    )
    encoder = AutoModel.from_pretrained(result.model_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(result.model_folder)
    with torch.no_grad():
        one, two = (
            encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
            for text in ("ba be", "ba ga")
        )
    by_hand = float(torch.cosine_similarity(one, two, dim=0))
    (tmp_path / "one.tsv").write_text("x\t0\tba be\tba ga\n")
    overrides = (f"task.validation={tmp_path / 'one.tsv'}", "training.precision=fp32")
    measured = evaluate(result.output, precision="fp32", overrides=overrides)
    assert measured["metrics"]["rmse"] == pytest.approx(5 * abs(by_hand), abs=1e-5)
    with pytest.raises(UserError, match="has no trained head"):
        evaluate(result.output, overrides=("task.pair_encoding=joint",))


def test_the_same_seed_gives_the_same_model_and_another_seed_another(folder: Path, tmp_path: Path) -> None:
    losses = []
    for number, seed in enumerate((1, 1, 2)):
        settings = recipe(folder, tmp_path / f"run-{number}", epochs=1).model_copy(update={"seed": seed})
        finetune(settings, Console(quiet=True))
        rows = (tmp_path / f"run-{number}" / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(row)["loss"] for row in rows if "loss" in json.loads(row)])
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_a_dense_model_trains_with_a_warning_and_masks_can_be_ignored(folder: Path, tmp_path: Path) -> None:
    console = Console(record=True, width=200)
    result = finetune(recipe(folder, tmp_path / "dense", "dense", epochs=1), console)
    assert (result.masks, result.sparsity) == ("none", 0.0)
    assert "is dense" in console.export_text()
    assert not (result.model_folder / MASK_FILE).exists()
    ignoring = recipe(folder, tmp_path / "free", epochs=1).model_copy(update={"masks": "ignore"})
    free = finetune(ignoring, Console(quiet=True))
    model = AutoModelForSequenceClassification.from_pretrained(free.model_folder)
    assert sum(nonzero_outside(model, MaskSet.load(folder / "sparse" / MASK_FILE)).values()) > 1000


def test_finished_runs_and_foreign_folders_are_kept_broken_runs_are_replaced(
    folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    settings = recipe(folder, output, epochs=1)
    finetune(settings, Console(quiet=True))
    with pytest.raises(UserError, match="holds a finished run"):
        finetune(settings, Console(quiet=True))
    finetune(settings.model_copy(update={"overwrite": True}), Console(quiet=True))
    (output / "metrics.json").unlink()
    finetune(settings, Console(quiet=True))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is no fine-tuning run"):
        finetune(recipe(folder, foreign), Console(quiet=True))


def copy_of_sparse(folder: Path, target: Path, change: Callable[[Path], Any]) -> str:
    target.mkdir()
    for path in (folder / "sparse").iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    change(target)
    return str(target)


def shrink_vocabulary(target: Path) -> None:
    tokenizer = json.loads((target / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= {f"extra{number}": 65 + number for number in range(10)}
    (target / "tokenizer.json").write_text(json.dumps(tokenizer))


def set_config(**values: Any) -> Callable[[Path], Any]:
    def change(target: Path) -> None:
        config = json.loads((target / "config.json").read_text())
        (target / "config.json").write_text(json.dumps(config | values))

    return change


def save_masks(target: Path) -> None:
    name = "bert.encoder.layer.0.attention.self.query.weight"
    MaskSet({name: torch.ones(4, 4, dtype=torch.bool)}).save(target / MASK_FILE)


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "another tokenizer": (shrink_vocabulary, "the tokenizer has 75 tokens, the model's embedding 65 rows"),
    "another architecture": (set_config(num_hidden_layers=3), "weights of the encoder are missing"),
    "another size": (set_config(intermediate_size=40), "weights of the encoder are of another shape"),
    "fewer positions": (
        set_config(max_position_embeddings=20),
        "max_length = 32: .* has 20 positions|another shape",
    ),
    "masks of another model": (save_masks, r"the mask of .*query.weight has shape \[4, 4\]"),
    "no tokenizer": (lambda target: (target / "tokenizer.json").unlink(), "no usable tokenizer"),
    "no weights": (lambda target: (target / "model.safetensors").unlink(), "no model here"),
    "broken weights": (
        lambda target: (target / "model.safetensors").write_bytes(b"broken"),
        "does not load: ",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_model_that_cannot_work_stops_before_anything_is_written(
    case: str, folder: Path, tmp_path: Path
) -> None:
    change, message = BROKEN[case]
    model = copy_of_sparse(folder, tmp_path / "model", change)
    with pytest.raises(UserError, match=message) as caught:
        finetune(recipe(folder, tmp_path / "run", model), Console(quiet=True))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_evaluate_refuses_other_tasks_and_unknown_splits(folder: Path, tmp_path: Path) -> None:
    result = finetune(recipe(folder, tmp_path / "run", epochs=1), Console(quiet=True))
    with pytest.raises(UserError, match="the task has train, validation"):
        evaluate(result.output, split="exam")
    with pytest.raises(UserError, match="fine-tuned for classification, the task is a regression"):
        evaluate(result.output, overrides=("task.kind=regression", "task.labels=[]"))
    with pytest.raises(UserError, match=r"no recipe\.yaml beside the model"):
        evaluate(folder / "sparse")


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_is_valid(name: str) -> None:
    assert load_recipe(name, [], FinetuneRecipe).masks == "lock"


def test_shipped_recipes_are_there() -> None:
    assert {"finetune-movie-sentiment", "finetune-sts-b", "finetune-sst2", "finetune-mnli"} <= set(SHIPPED)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.labels=[a,b]", "labels are the classes of a classification"),
        ("task.text_pair=null", "pair_encoding = 'separate' scores the likeness"),
        ("task.metric=f1", "does not fit regression; one of spearman, pearson, rmse"),
        ("training.epochs=0", "training.epochs = 0"),
        ("task.sub=mnli", "unknown key; did you mean 'subset'"),
        ("masks=locked", "masks = 'locked': should be 'lock', 'require' or 'ignore'"),
    ],
)
def test_wrong_recipes_say_what_would_be_right(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe("finetune-sts-b", [override], FinetuneRecipe)


def test_an_interrupted_run_goes_on_behind_its_last_epoch_as_if_nothing_had_happened(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def weights(output: str) -> dict[str, torch.Tensor]:
        return load_file(tmp_path / output / "model" / "model.safetensors")

    def settings(output: str) -> FinetuneRecipe:
        return recipe(folder, tmp_path / output, epochs=3, dropout=0.1)

    whole = finetune(settings("whole"), Console(quiet=True))
    assert not (tmp_path / "whole" / "unfinished").exists()

    def stop(self: ProgressReport, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == state.max_steps // 3 + 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ProgressReport, "on_step_end", stop)
        with pytest.raises(KeyboardInterrupt):
            finetune(settings("part"), Console(quiet=True))
    console = Console(record=True, width=200, force_terminal=False)
    result = finetune(settings("part"), console)
    assert "going on behind the last whole epoch" in console.export_text()
    assert result.metrics == whole.metrics
    mine, theirs = weights("part"), weights("whole")
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    rows = [[row["step"] for row in read_rows(tmp_path / one / "metrics.jsonl")] for one in ("part", "whole")]
    assert rows[0] == rows[1]
    assert not (tmp_path / "part" / "unfinished").exists()


def test_what_another_recipe_has_left_is_not_gone_on_with(folder: Path, tmp_path: Path) -> None:
    first = recipe(folder, tmp_path / "run", epochs=3)
    checkpoint = tmp_path / "run" / "unfinished" / "checkpoint-7"
    checkpoint.mkdir(parents=True)
    (tmp_path / "run" / "recipe.yaml").write_text(to_yaml(first))
    (tmp_path / "run" / "provenance.json").write_text('{"data_fingerprint": "abc"}')
    assert newest_epoch(first, "abc") is None, "half written"
    (checkpoint / "trainer_state.json").touch()
    assert newest_epoch(first, "abc") == checkpoint
    assert newest_epoch(first, "other texts") is None
    assert newest_epoch(recipe(folder, tmp_path / "run", epochs=4), "abc") is None
    (tmp_path / "run" / "provenance.json").write_text("{")
    assert newest_epoch(first, "abc") is None
