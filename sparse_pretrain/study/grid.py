"""Which runs the study compares."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

SPARSITIES = (0.5, 0.85, 0.9, 0.95)
# How each column of the table prunes; `2:4` exists at one sparsity only.
PATTERNS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "global": {"allocation": {"kind": "global"}},
    "4x1 blocks": {"structure": {"kind": "block", "rows": 4, "columns": 1}},
    "2:4": {"structure": {"kind": "n_of_m", "keep": 2, "of": 4}},
    "uniform, one shot": {"schedule": "one_shot"},
}
ONLY_AT = {"2:4": (0.5,), "uniform, one shot": (0.85, 0.9, 0.95)}
DENSE = "dense"


@dataclass(frozen=True)
class Cell:
    """One run of the study.

    Attributes:
        pattern: a key of `PATTERNS`, or `dense`.
        sparsity: at the end, in [0, 1).
        distilled: whether the teacher's logits are half of the loss.
        seed: of data order, masking and dropout.
    """

    pattern: str
    sparsity: float
    distilled: bool
    seed: int

    @property
    def name(self) -> str:
        """Folder name of the run."""
        pattern = self.pattern.replace(":", "-of-").replace(", ", "-").replace(" ", "-")
        return f"{pattern}-{self.sparsity * 100:g}-{'kd' if self.distilled else 'mlm'}-seed-{self.seed}"


def cells(seeds: int) -> Iterator[Cell]:
    """Yield every run, the first seed's first."""
    for seed in range(seeds):
        for distilled in (True, False):
            yield Cell(DENSE, 0.0, distilled, seed)
            for pattern in PATTERNS:
                for sparsity in ONLY_AT.get(pattern, SPARSITIES):
                    yield Cell(pattern, sparsity, distilled, seed)


def recipe_of(cell: Cell, steps: int, paths: dict[str, str]) -> dict[str, Any]:
    """Return the training recipe of a cell, as plain values.

    All cells share batch, learning rate, steps and starting point; they differ in nothing but the cell's
    own fields. The ramp ends after 40 % of the steps, masks freeze after 64 %.

    Args:
        cell: the run.
        steps: optimizer steps.
        paths: `data`, `teacher` (a release: student and teacher both start from it) and `output`.
    """
    recipe: dict[str, Any] = {
        "output": paths["output"],
        "seed": 1000 + cell.seed,
        "steps": steps,
        "model": {"source": paths["teacher"], "dropout": 0.0},
        "data": {"path": paths["data"]},
        "batch": {"global_size": 8, "micro_size": 8},
        "optimizer": {"learning_rate": 5e-4},
        "learning_rate": {"kind": "linear", "warmup": 0.05},
        "checkpoint": {"every": steps, "keep": {"last": 1}},
        "evaluation": {"every": steps, "rows": 256},
        "logging": {"every": 10, "histograms_every": 0},
    }
    if cell.distilled:
        recipe["distillation"] = {"teacher": paths["teacher"]}
    if cell.pattern != DENSE:
        recipe["pruning"] = pruning_of(cell, steps)
    return recipe


def pruning_of(cell: Cell, steps: int) -> dict[str, Any]:
    """Return the pruning section of a sparse cell."""
    every = max(1, steps // 25)
    own = PATTERNS[cell.pattern]
    ramp = {} if "schedule" in own else {"ramp_end": 10 * every, "end": 16 * every, "frequency": every}
    return {"target_sparsity": cell.sparsity, **ramp, **own}


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean."""
    return sum(values) / len(values)
