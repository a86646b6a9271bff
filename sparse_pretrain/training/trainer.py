"""The training loop."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.data.batch import Batch, Counts
from sparse_pretrain.data.loader import TrainingLoader
from sparse_pretrain.distillation.objective import Answer, GlobalLosses, Losses, Objective
from sparse_pretrain.distillation.temperature import temperature_at
from sparse_pretrain.pruning.pruner import Pruner
from sparse_pretrain.pruning.update import MaskUpdate
from sparse_pretrain.training.callback import Callback, StepReport, is_logged
from sparse_pretrain.training.engine import Engine
from sparse_pretrain.training.evaluation import evaluate
from sparse_pretrain.training.guard import Guard
from sparse_pretrain.training.learning_rate import learning_rate_at
from sparse_pretrain.training.signals import StopFlag
from sparse_pretrain.training.world import World


class Teacher(Protocol):
    """A frozen model, or what was stored of one: batch in, logits at the batch's positions out."""

    def __call__(self, batch: Batch) -> Answer:
        """Answer without gradient."""
        ...


class Trainer:
    """Steps, and what happens between them: mask updates, evaluation, checkpoints, telemetry.

    Everything with memory is restored from outside (see `training.snapshot`); the trainer itself only
    counts steps.
    """

    def __init__(
        self,
        recipe: TrainRecipe,
        world: World,
        engine: Engine,
        teachers: Sequence[Teacher],
        objective: Objective,
        loader: TrainingLoader,
        pruner: Pruner | None,
        validation: Callable[[], Sequence[Batch]],
        callbacks: Sequence[Callback],
    ) -> None:
        self.recipe = recipe
        self.world = world
        self.engine = engine
        self.teachers = teachers
        self.loader = loader
        self.pruner = pruner
        self.step = 0
        self.metrics: dict[str, float] = {}
        self.stop = StopFlag()
        self.guard = Guard(recipe.guard.skipped_in_a_row)
        self.last_checkpoint: Path | None = None
        self._objective = objective
        self._validation = validation
        self._callbacks = callbacks if world.is_first else ()

    def run(self, save: Callable[["Trainer"], None]) -> bool:
        """Train until the recipe's last step, or until a signal asks to stop.

        Args:
            save: writes a checkpoint together with all ranks.

        Returns:
            True when the run is finished, False when it stopped early. A checkpoint was saved, unless updates
            were just being skipped: a diverging run must not push its good checkpoints out.

        Raises:
            TrainingDivergedError: too many steps in a row had no usable update.
            BrokenWeightsError: a weight is NaN or does not obey its mask.
        """
        recipe = self.recipe
        self._tell(lambda listener: listener.on_start(self.step, recipe.steps))
        try:
            if self.step == 0 and self.pruner is not None:
                self._report_masks(self.pruner.after_step(0))
            while self.step < recipe.steps:
                report, stopping = self.train_step()
                self._tell(lambda listener, report=report: listener.on_step(report))  # type: ignore[misc]
                last = self.step == recipe.steps
                self.guard.check(self.step, self.last_checkpoint, last)
                if last or self.step % recipe.evaluation.every == 0:
                    self.evaluate()
                if recipe.logging.histograms_every and self.step % recipe.logging.histograms_every == 0:
                    self._report_weights()
                due = last or stopping or self.step % recipe.checkpoint.every == 0
                if due and self.guard.healthy:
                    save(self)
                if stopping and not last:
                    return False
            return True
        finally:
            self._tell(lambda listener: listener.on_end())

    def train_step(self) -> tuple[StepReport, bool]:
        """Do one optimizer step on the next global batch; also say whether any rank was asked to stop."""
        started = time.perf_counter()
        batches = self.loader.next_step()
        totals = self._global_counts(batches)
        learning_rate = learning_rate_at(self.step, self.recipe)
        self.engine.set_learning_rate(learning_rate)
        temperature, measured = self._temperature(), self._is_logged(self.step + 1)
        shares, pairs = [], False
        for batch in batches:
            share, pairs = self._micro_batch(batch, totals, temperature or 1.0, measured)
            shares.append(share)
        if self.pruner is not None:
            self.pruner.before_step()
        applied = self.engine.step()
        self.step += 1
        if self.pruner is not None:
            self._report_masks(self.pruner.after_step(self.step, learning_rate, applied))
        means, stop = self._global_losses(shares)
        self.guard.count(means.total, applied)
        report = StepReport(
            step=self.step,
            loss=means.total,
            mlm_loss=means.mlm,
            nsp_loss=means.next_sentence if pairs else None,
            kd_loss=means.distillation if self.teachers else None,
            learning_rate=learning_rate,
            gradient_norm=self.engine.gradient_norm(),
            sparsity=self.pruner.sparsity if self.pruner is not None else None,
            real_tokens=totals.real,
            seconds=time.perf_counter() - started,
            applied=applied,
            skipped=self.guard.skipped,
            kd_parts={name: means.parts[name] for name in self._objective.part_names},
            temperature=temperature,
            teacher_agreement=means.agreement if measured and self.teachers else None,
        )
        return report, stop > 0

    def _micro_batch(
        self, batch: Batch, totals: Counts, temperature: float, measured: bool
    ) -> tuple[Tensor, bool]:
        """Do one forward and backward pass; return the losses' numbers, and whether there was an NSP loss."""
        losses, pairs = self._losses(batch.to(self.world.device), totals, temperature, measured)
        self.engine.backward(losses.total)
        return losses.numbers(), pairs

    def _losses(
        self, batch: Batch, totals: Counts, temperature: float, measured: bool
    ) -> tuple[Losses, bool]:
        # All logits die when this returns: neither the backward pass nor the update needs them.
        answers = [teacher(batch) for teacher in self.teachers]
        student = self.engine(batch)
        losses = self._objective(student, answers, batch, totals, temperature, measured)
        return losses, student.next_sentence is not None

    def evaluate(self) -> dict[str, float]:
        """Measure held-out loss and accuracy now, and remember them for the next checkpoint."""
        self.metrics = evaluate(self.engine.predict, self._validation(), self.world)
        self._tell(lambda listener: listener.on_evaluation(self.step, self.metrics))
        return self.metrics

    def announce_checkpoint(self, folder: Path) -> None:
        """Remember a committed checkpoint, and tell the listeners."""
        self.last_checkpoint = folder
        self._tell(lambda listener: listener.on_checkpoint(self.step, folder))

    def _global_counts(self, batches: Sequence[Batch]) -> Counts:
        local = [sum(column) for column in zip(*(batch.counts for batch in batches), strict=True)]
        return Counts(*(int(value) for value in self.world.sum(local)))

    def _global_losses(self, shares: Sequence[Tensor]) -> tuple[GlobalLosses, float]:
        local = torch.stack(list(shares)).sum(dim=0).tolist()
        *numbers, stop = self.world.sum([*local, float(self.stop.raised)])
        return GlobalLosses.read(numbers), stop

    def _temperature(self) -> float | None:
        section = self.recipe.distillation
        return None if section is None else temperature_at(self.step, self.recipe.steps, section)

    def _is_logged(self, step: int) -> bool:
        return is_logged(step, self.recipe.logging.every, self.recipe.steps)

    def _report_masks(self, update: MaskUpdate | None) -> None:
        if update is not None and self.pruner is not None:
            masks = self.pruner.masks
            self._tell(lambda listener: listener.on_masks(update, masks))

    def _report_weights(self) -> None:
        for name in self.pruner.masks if self.pruner is not None else ():
            whole = self.engine.full_master(name)
            self._tell(lambda listener, name=name, whole=whole: listener.on_weight(self.step, name, whole))  # type: ignore[misc]

    def _tell(self, event: Callable[[Callback], None]) -> None:
        for listener in self._callbacks:
            event(listener)
