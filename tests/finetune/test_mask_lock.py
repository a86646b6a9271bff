"""The lock in somebody's own Trainer: three lines, and no pruned weight comes back."""

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from sparse_pretrain.checkpoint.release import release
from sparse_pretrain.errors import UserError
from sparse_pretrain.finetune.mask_lock import MaskBrokenError, MaskLock, nonzero_outside
from sparse_pretrain.pruning.masks import MASK_FILE, MaskSet
from tests.finetune.models import SPARSITY, dense_folder, tiny_contents

EXAMPLES = [
    {"input_ids": [2, 5 + number % 40, 6 + number % 7, 3], "labels": number % 2} for number in range(32)
]


@pytest.fixture
def released(tmp_path: Path) -> Path:
    contents = tiny_contents(tmp_path / "checkpoint-model", next_sentence=True)
    return release(contents, tmp_path / "out", Console(quiet=True))


def load(folder: Path) -> Any:
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)


def plain_trainer(model: Any, folder: Path, callbacks: list[Any], **changes: Any) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=4,
        learning_rate=1e-2,
        weight_decay=0.1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=EXAMPLES, callbacks=callbacks, **changes)
    trainer.remove_callback(PrinterCallback)
    return trainer


class Noisy(torch.optim.SGD):
    """An optimizer that moves every weight, whatever its gradient."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.add_(torch.randn_like(parameter), alpha=1e-3)


@pytest.mark.parametrize("origin", ["file", "zeros"])
def test_adamw_with_decay_leaves_no_weight_outside_the_mask(
    origin: str, released: Path, tmp_path: Path
) -> None:
    expected = MaskSet.load(released / MASK_FILE)
    if origin == "zeros":
        (released / MASK_FILE).unlink()
    model = load(released)
    lock = MaskLock.from_source(model, released)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    plain_trainer(model, tmp_path / "run", [lock]).train()
    assert set(lock.masks) == set(expected)
    assert sum(nonzero_outside(model, expected).values()) == 0
    assert lock.masks.total_sparsity() == pytest.approx(SPARSITY, abs=1e-3)
    for name, mask in expected.items():
        moved = model.get_parameter(name) != before[name]
        assert moved[mask].float().mean() > 0.9, f"{name}: the weights that are kept must train"
        assert not model.get_parameter(name)._backward_hooks


def test_without_the_lock_pruned_weights_come_back(released: Path, tmp_path: Path) -> None:
    model = load(released)
    plain_trainer(model, tmp_path / "run", []).train()
    assert sum(nonzero_outside(model, MaskSet.load(released / MASK_FILE)).values()) > 1000


def test_the_lock_holds_under_an_optimizer_that_ignores_gradients(released: Path, tmp_path: Path) -> None:
    model = load(released)
    optimizer = Noisy(model.parameters(), lr=1e-3)
    lock = MaskLock.from_source(model, released)
    plain_trainer(model, tmp_path / "run", [lock], optimizers=(optimizer, None)).train()
    assert sum(nonzero_outside(model, lock.masks).values()) == 0


def test_pruned_gradients_are_zero_before_clipping_sees_them(released: Path) -> None:
    model = load(released)
    lock = MaskLock.from_source(model, released)
    lock.lock(model)
    model(input_ids=torch.tensor([[2, 7, 8, 3]]), labels=torch.tensor([1])).loss.backward()
    for name, mask in lock.masks.items():
        gradient = model.get_parameter(name).grad
        assert int(gradient[~mask].count_nonzero()) == 0
    inside = [model.get_parameter(name).grad[mask] for name, mask in lock.masks.items()]
    assert sum(int(part.count_nonzero()) for part in inside) > 1000


def test_a_broken_pattern_is_reported_at_the_end(released: Path, tmp_path: Path) -> None:
    model = load(released)
    lock = MaskLock.from_source(model, released)
    name = next(iter(lock.masks))
    place = tuple((~lock.masks[name]).nonzero()[0])

    class Saboteur(TrainerCallback):
        """Breaks one weight after the lock has acted on the last step."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == state.max_steps:
                kwargs["model"].get_parameter(name).data[place] = 1e-20

    trainer = plain_trainer(model, tmp_path / "run", [lock, Saboteur()])
    with pytest.raises(MaskBrokenError, match=f"{name}: 1 weights outside"):
        trainer.train()


def test_masks_that_do_not_fit_and_dense_sources_are_refused(released: Path, tmp_path: Path) -> None:
    model = load(released)
    dense = dense_folder(tmp_path / "dense")
    with pytest.raises(UserError, match="dense: it has no mask file"):
        MaskLock.from_source(load(dense), dense)
    masks = MaskSet.load(released / MASK_FILE)
    first = next(iter(masks))
    MaskSet({first: torch.ones(2, 2, dtype=torch.bool)}).save(released / MASK_FILE)
    with pytest.raises(UserError, match=r"has shape \[2, 2\], the model's weight \[32, 32\]"):
        MaskLock.from_source(model, released)
    MaskSet({"other.weight": torch.ones(2, 2, dtype=torch.bool)}).save(released / MASK_FILE)
    with pytest.raises(UserError, match="no mask fits a weight"):
        MaskLock.from_source(model, released)
    with pytest.raises(UserError, match="the model has no such weight"):
        MaskLock(MaskSet({"weight": torch.ones(2, dtype=torch.bool)})).lock(nn.Module())
