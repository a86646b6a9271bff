"""The training loop."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.data.batch import Batch, Counts
from sparse_pretrain.distillation.objective import Answer, GlobalLosses, Losses, Objective
from sparse_pretrain.distillation.temperature import temperature_at
from sparse_pretrain.pruning.pruner import Pruner
from sparse_pretrain.pruning.update import MaskUpdate
from sparse_pretrain.training.callback import Callback, CheckpointReport, StepReport, is_logged
from sparse_pretrain.training.deadline import Deadline
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


class Loader(Protocol):
    """Training batches, and the position in the data."""

    @property
    def samples_seen(self) -> int:
        """Samples of the stream that were used."""
        ...

    def next_step(self) -> list[Batch]:
        """Return this rank's micro-batches of the next global batch."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the position."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a position."""
        ...


class Saver(Protocol):
    """Saves a run together with all ranks; what may take long happens beside the training."""

    @property
    def pending(self) -> bool:
        """Whether a save is under way."""
        ...

    @property
    def is_written(self) -> bool:
        """Whether this rank has done its share of the save that is under way."""
        ...

    @property
    def longest_seconds(self) -> float:
        """What the longest save has taken so far."""
        ...

    def begin(self, trainer: "Trainer") -> None:
        """Save the trainer's present step; one that is still under way is committed first (collective)."""
        ...

    def wait_until_copied(self) -> None:
        """Return when weights may change."""
        ...

    def commit(self, trainer: "Trainer") -> None:
        """Wait for the save that is under way, if there is one, and make it a checkpoint (collective)."""
        ...


class Agreed(NamedTuple):
    """What the ranks agree on after each step; numbers of ranks.

    Attributes:
        stop: were asked to stop.
        hurry: were asked again.
        written: have done their share of the save that is under way.
    """

    stop: float
    hurry: float
    written: float


class Trainer:
    """Steps, and what happens between them: mask updates, evaluation, checkpoints, telemetry.

    Everything with memory is saved and restored from outside (`training.saver`, `training.restore`); the
    trainer itself only counts steps.
    """

    def __init__(
        self,
        recipe: TrainRecipe,
        world: World,
        engine: Engine,
        teachers: Sequence[Teacher],
        objective: Objective,
        loader: Loader,
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
        self.evaluated_at = 0
        self.stop = StopFlag()
        self.deadline: Deadline | None = None
        self.saver: Saver | None = None
        self.guard = Guard(recipe.guard.skipped_in_a_row)
        self.last_checkpoint: Path | None = None
        self._longest_step = 0.0
        self._objective = objective
        self._validation = validation
        self._callbacks = callbacks if world.is_first else ()

    def add_listener(self, listener: Callback) -> None:
        """Tell one more listener, on whichever rank this is; the constructor's are told on rank 0 only."""
        self._callbacks = [*self._callbacks, listener]

    def run(self, saver: Saver) -> bool:
        """Train until the recipe's last step, until a signal asks to stop, or until the walltime is up.

        Args:
            saver: of the checkpoints.

        Returns:
            True when the run is finished, False when it stopped early. A checkpoint was saved, unless updates
            were just being skipped: a diverging run must not push its good checkpoints out. A stop that is
            asked for twice makes do with a checkpoint that is just being written.

        Raises:
            TrainingDivergedError: too many steps in a row had no usable update.
            BrokenWeightsError: a weight is NaN or does not obey its mask.
            UserError: a checkpoint cannot be written.
        """
        recipe, self.saver = self.recipe, saver
        self._tell(lambda listener: listener.on_start(self.step, recipe.steps))
        try:
            if self.step == 0 and self.pruner is not None:
                self._report_masks(self.pruner.after_step(0))
            if self.step and self.evaluated_at != self.step:
                # A stop does not wait for an evaluation that was due: it is made up for here.
                self._look_closer(last=False)
            while self.step < recipe.steps:
                began = time.perf_counter()
                self._enter("training")
                report, agreed = self.train_step()
                self._tell(lambda listener, report=report: listener.on_step(report))  # type: ignore[misc]
                last = self.step == recipe.steps
                if agreed.written == self.world.size or not self.guard.healthy:
                    self._enter("saving")
                    saver.commit(self)
                self.guard.check(self.step, self.last_checkpoint, last)
                if last or not agreed.stop:
                    self._look_closer(last)
                # With its evaluation: what the walltime must still have room for.
                self._longest_step = max(self._longest_step, time.perf_counter() - began)
                due = last or agreed.stop or self.step % recipe.checkpoint.every == 0
                if due and self.guard.healthy and not (agreed.hurry and saver.pending):
                    self._enter("saving")
                    saver.begin(self)
                if agreed.stop and not last:
                    self._enter("saving")
                    saver.commit(self)
                    return False
            self._enter("saving")
            saver.commit(self)
            return True
        finally:
            self._tell(lambda listener: listener.on_end())

    def _look_closer(self, last: bool) -> None:
        """Evaluate and draw weights, where the recipe wants it after this step."""
        recipe = self.recipe
        if last or self.step % recipe.evaluation.every == 0:
            self.evaluate()
        if recipe.logging.histograms_every and self.step % recipe.logging.histograms_every == 0:
            self._report_weights()

    def train_step(self) -> tuple[StepReport, Agreed]:
        """Do one optimizer step on the next global batch; also say what the ranks agree on."""
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
        if self.saver is not None:
            self.saver.wait_until_copied()
        if self.pruner is not None:
            self.pruner.before_step()
        applied = self.engine.step()
        self.step += 1
        if self.pruner is not None:
            self._report_masks(self.pruner.after_step(self.step, learning_rate, applied))
        means, agreed = self._global_losses(shares)
        self.guard.count(means.total, applied)
        seconds = time.perf_counter() - started
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
            seconds=seconds,
            applied=applied,
            skipped=self.guard.skipped,
            kd_parts={name: means.parts[name] for name in self._objective.part_names},
            temperature=temperature,
            teacher_agreement=means.agreement if measured and self.teachers else None,
        )
        return report, agreed

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
        self._enter("evaluating")
        self.metrics = evaluate(self.engine.predict, self._validation(), self.world)
        self.evaluated_at = self.step
        self._tell(lambda listener: listener.on_evaluation(self.step, self.metrics))
        return self.metrics

    def announce_checkpoint(self, report: CheckpointReport) -> None:
        """Remember a committed checkpoint, and tell the listeners."""
        self.last_checkpoint = report.folder
        self._tell(lambda listener: listener.on_checkpoint(report))

    def _global_counts(self, batches: Sequence[Batch]) -> Counts:
        local = [sum(column) for column in zip(*(batch.counts for batch in batches), strict=True)]
        return Counts(*(int(value) for value in self.world.sum(local)))

    def _global_losses(self, shares: Sequence[Tensor]) -> tuple[GlobalLosses, Agreed]:
        local = torch.stack(list(shares)).sum(dim=0).tolist()
        written = self.saver is not None and self.saver.is_written
        mine = (self._must_stop(), self.stop.again, written)
        *numbers, stop, hurry, written_by = self.world.sum([*local, *map(float, mine)])
        return GlobalLosses.read(numbers), Agreed(stop, hurry, written_by)

    def _must_stop(self) -> bool:
        needed = self._longest_step + (self.saver.longest_seconds if self.saver is not None else 0.0)
        if self.deadline is not None and self.deadline.is_near(needed):
            self.stop.note("the walltime is nearly up")
        return self.stop.raised

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

    def _enter(self, phase: str) -> None:
        self._tell(lambda listener: listener.on_phase(phase))

    def _tell(self, event: Callable[[Callback], None]) -> None:
        for listener in self._callbacks:
            event(listener)
