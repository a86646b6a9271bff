"""The training loop by itself, around stand-ins for engine and teacher."""

import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from sparse_pretrain.data.batch import Batch, Counts
from sparse_pretrain.distillation.objective import Objective
from sparse_pretrain.models.pretraining import Predictions
from sparse_pretrain.training.trainer import Trainer
from tests.tiny import tiny_recipe


def test_a_teachers_logits_die_before_the_backward_pass(tmp_path: Path) -> None:
    """Neither the backward pass, nor the next forward pass, nor the update finds them in memory."""
    answers: list[weakref.ref[Tensor]] = []
    alive: dict[str, list[int]] = {"forward": [], "backward": [], "update": []}

    def count(moment: str) -> None:
        alive[moment].append(sum(answer() is not None for answer in answers))

    class Engine:
        weight = torch.zeros(4, 65, requires_grad=True)

        def __call__(self, batch: Batch) -> Predictions:
            return Predictions(self.weight * 1, None)

        def backward(self, loss: Tensor) -> None:
            count("backward")
            loss.backward()  # type: ignore[no-untyped-call]

        def step(self) -> bool:
            count("update")
            return True

        def set_learning_rate(self, rate: float) -> None:
            pass

        def gradient_norm(self) -> float:
            return 1.0

    def teacher(batch: Batch) -> Predictions:
        count("forward")
        logits = torch.ones(4, 65)
        answers.append(weakref.ref(logits))
        return Predictions(logits, None)

    recipe = tiny_recipe(tmp_path, tmp_path, distillation={"teacher": "teacher"})
    batch = Batch(
        torch.zeros(1, 4).long(), None, None, torch.arange(4), torch.ones(4).long(), None, Counts(4, 4, 1)
    )
    world: Any = SimpleNamespace(is_first=True, device=torch.device("cpu"), sum=list)
    loader: Any = SimpleNamespace(next_step=lambda: [batch, batch])
    engine: Any = Engine()
    objective = Objective(recipe.distillation)
    trainer = Trainer(recipe, world, engine, [teacher], objective, loader, None, list, [])
    report, _ = trainer.train_step()
    assert report.nsp_loss is None
    assert alive == {"forward": [0, 0], "backward": [0, 0], "update": [0]}
