"""One training step as `sparse-pretrain train` does it: the real trainer on packed rows, nothing left out."""

from pathlib import Path
from typing import Any

from sparse_pretrain.bench.train_settings import Measurement
from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.training.build import build_trainer
from sparse_pretrain.training.inputs import Inputs, open_inputs
from sparse_pretrain.training.world import World

# The run is far in its ramp and never ends while it is measured.
STEPS = 1_000_000


class OurStep:
    """A trainer; call it for one optimizer step."""

    def __init__(self, world: World, measurement: Measurement, folder: Path) -> None:
        case = measurement.case
        recipe = recipe_of(measurement, world.size, folder)
        self._inputs: Inputs = open_inputs(recipe)
        self._trainer, _ = build_trainer(recipe, self._inputs, world, case.precision, [])
        if self._trainer.pruner is not None:
            self._trainer.pruner.after_step(0)

    def __call__(self) -> tuple[int, int]:
        """Do one step; return this rank's real tokens, and the slots that went through the encoder."""
        trainer = self._trainer
        report, _ = trainer.train_step()
        batch = trainer.recipe.batch
        slots = batch.global_size * self._inputs.train.manifest.sequence_length
        return int(report.real_tokens) // trainer.world.size, slots // trainer.world.size

    @property
    def config(self) -> Any:
        """The student's architecture."""
        return self._inputs.config


def recipe_of(measurement: Measurement, ranks: int, folder: Path) -> TrainRecipe:
    """Return the recipe whose step is measured."""
    case, mode = measurement.case, measurement.mode
    recipe: dict[str, Any] = {
        "output": str(folder / "run"),
        "steps": STEPS,
        "precision": case.precision,
        "model": {"source": measurement.start},
        "data": {"path": measurement.packed},
        "batch": {"global_size": case.rows * ranks, "micro_size": case.rows},
        "logging": {"every": STEPS, "histograms_every": 0},
        "engine": {"compile": case.compile},
    }
    if mode != "dense":
        # The paper's: masks are drawn every 1,000 steps, up to four fifths of the run.
        ramp = {"ramp_end": STEPS // 2, "end": STEPS * 4 // 5, "frequency": 1000}
        recipe["pruning"] = {"target_sparsity": 0.85, **ramp}
    if mode == "pruning + teacher":
        recipe["distillation"] = {"teacher": measurement.start}
    return TrainRecipe.model_validate(recipe)
