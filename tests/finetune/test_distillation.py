"""A teacher in fine-tuning: the loss of a plain reference, teachers trained once, and what cannot teach."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sparse_pretrain.config.load import load_recipe
from sparse_pretrain.errors import UserError
from sparse_pretrain.finetune.batches import collator
from sparse_pretrain.finetune.forward import TaskTrainer, task_loss, teacher_loss
from sparse_pretrain.finetune.kinds import kind_of
from sparse_pretrain.finetune.kinds.base import Answers
from sparse_pretrain.finetune.recipe import DistillationSection, FinetuneRecipe
from sparse_pretrain.finetune.tasks import load_task
from sparse_pretrain.finetune.train import finetune
from tests.finetune.models import pairs, recipe

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def teacher(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model fine-tuned on the sentence task."""
    output = tmp_path_factory.mktemp("teacher") / "run"
    return finetune(recipe(folder, output, "dense", epochs=1), QUIET).output


def by_hand(student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, t: float, w: float) -> float:
    """The loss, written out with loops over rows and classes."""
    total = 0.0
    for row, label in enumerate(labels.tolist()):
        own, other = student[row].double(), teacher[row].double()
        hard = -float(own[label] - own.exp().sum().log())
        p = (other / t).exp() / (other / t).exp().sum()
        q = (own / t).exp() / (own / t).exp().sum()
        soft = sum(float(p[k] * (p[k] / q[k]).log()) for k in range(len(p))) * t * t
        total += (1 - w) * hard + w * soft
    return total / len(labels)


def test_the_loss_equals_a_plain_reference_and_vanishes_for_equal_models() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 3), torch.randn(5, 3)
    labels = torch.tensor([0, 2, 1, 1, 0])
    own, other = [Answers(student, labels)], [Answers(teacher, labels)]
    loss = 0.3 * task_loss(own) + 0.7 * teacher_loss(own, other, 4.0)
    assert float(loss) == pytest.approx(by_hand(student, teacher, labels, 4.0, 0.7), rel=1e-5)
    assert float(teacher_loss(own, own, 2.0)) == pytest.approx(0.0, abs=1e-7)
    scores = [Answers(torch.tensor([[1.0], [2.0]]), torch.zeros(2))]
    wanted = [Answers(torch.tensor([[0.0], [4.0]]), torch.zeros(2))]
    assert float(teacher_loss(scores, wanted, 2.0)) == pytest.approx((1 + 4) / 2)


def test_a_step_of_training_has_the_reference_loss(folder: Path, teacher: Path) -> None:
    """Through the real Trainer's loss: both models see the same batch, the teacher without dropout or gradient."""
    section = DistillationSection(teacher=str(teacher), temperature=3.0, weight=0.6)
    settings = recipe(folder, Path("nowhere"))
    kind = kind_of(settings.task)
    student, model = (
        AutoModelForSequenceClassification.from_pretrained(path, num_labels=2).eval()
        for path in (folder / "sparse", teacher / "model")
    )
    tokenizer = AutoTokenizer.from_pretrained(folder / "sparse")
    rows = kind.encode(tokenizer, load_task(settings.task).splits["train"], 32)
    batch = collator(kind, tokenizer)([rows[number] for number in range(8)])
    trainer = TaskTrainer(model=student)
    trainer.kind, trainer.teacher, trainer.distillation = kind, model, section
    loss = trainer.compute_loss(student, dict(batch))
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        expected = by_hand(
            student(**inputs).logits, model(**inputs).logits, batch["labels"], section.temperature, 0.6
        )
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["classification", "regression", "separate"])
def test_zeros_stay_locked_while_learning_from_a_teacher(kind: str, folder: Path, tmp_path: Path) -> None:
    task: Any = None if kind == "classification" else pairs(folder)
    if kind == "separate":
        task = task | {"pair_encoding": "separate"}
    first = finetune(recipe(folder, tmp_path / "dense", "dense", task, epochs=1), QUIET)
    sections = {"distillation": {"teacher": str(first.output), "weight": 0.9}}
    settings = recipe(folder, tmp_path / "run", task=task, sections=sections, epochs=2, weight_decay=0.1)
    result = finetune(settings, QUIET)
    plain = finetune(recipe(folder, tmp_path / "plain", task=task, epochs=2, weight_decay=0.1), QUIET)
    assert (result.masks, result.nonzero_outside_masks) == ("file", 0)
    assert result.teacher == str(first.output)
    assert plain.teacher is None
    assert result.metrics != plain.metrics


def test_teacher_auto_is_trained_once_and_only_for_the_recipe_it_belongs_to(
    folder: Path, tmp_path: Path
) -> None:
    sections = {"distillation": {"teacher": "auto", "dense": str(folder / "dense")}}
    first = finetune(recipe(folder, tmp_path / "a", sections=sections, epochs=1), QUIET)
    (trained,) = (tmp_path / "teachers").iterdir()
    assert first.teacher == str(trained / "model")
    own = load_recipe(trained / "recipe.yaml", [], FinetuneRecipe)
    assert (own.model, own.distillation, own.masks) == (str(folder / "dense"), None, "ignore")
    stamp = (trained / "metrics.json").stat().st_mtime_ns
    # A student's own weight and temperature do not change what its teacher is; its epochs do.
    softer = {"distillation": sections["distillation"] | {"temperature": 4.0}}
    assert finetune(recipe(folder, tmp_path / "b", sections=softer, epochs=1), QUIET).teacher == first.teacher
    assert (trained / "metrics.json").stat().st_mtime_ns == stamp
    finetune(recipe(folder, tmp_path / "c", sections=sections, epochs=2), QUIET)
    assert len(list((tmp_path / "teachers").iterdir())) == 2
    # One that was cut off is trained again.
    (trained / "metrics.json").unlink()
    finetune(recipe(folder, tmp_path / "d", sections=sections, epochs=1), QUIET)
    assert (trained / "metrics.json").is_file()


def test_what_cannot_teach_stops_before_anything_is_written(
    folder: Path, teacher: Path, tmp_path: Path
) -> None:
    swapped, other = tmp_path / "swapped", tmp_path / "other"
    shutil.copytree(teacher / "model", swapped)
    config = json.loads((swapped / "config.json").read_text())
    config["id2label"] = {"0": "good", "1": "bad"}
    (swapped / "config.json").write_text(json.dumps(config))
    shutil.copytree(teacher / "model", other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["ba"], vocabulary["be"] = vocabulary["be"], vocabulary["ba"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    cases = {
        str(swapped): "its classes are good, bad, the task's bad, good",
        str(other): "has another tokenizer than the student",
        str(folder / "dense"): "its classes are|no trained head",
        "no/such": "no/such: no such folder",
    }
    for source, message in cases.items():
        settings = recipe(folder, tmp_path / "run", sections={"distillation": {"teacher": source}})
        with pytest.raises(UserError, match=message) as caught:
            finetune(settings, QUIET)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("distillation.teacher=auto", "teacher: auto needs dense"),
        ("distillation={teacher: a, dense: b}", "dense belongs to teacher: auto"),
        ("distillation={teacher: a, weight: 1.5}", "distillation.weight = 1.5"),
        ("seeds=[1,1]", "each only once"),
    ],
)
def test_wrong_sections_say_what_would_be_right(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe("finetune-sst2", [override], FinetuneRecipe)
