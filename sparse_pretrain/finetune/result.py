"""What a fine-tuning run ends with."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class FinetuneResult:
    """Scores and facts of a run; the same as its `metrics.json`.

    Attributes:
        output: the run folder.
        model_folder: the fine-tuned model, with tokenizer and masks.
        metric: name of the headline metric.
        score: its value on the validation data.
        metrics: every metric of every held-out split, by split.
        examples: number of examples by split.
        masks: where the locked masks came from: `file`, `zeros`, `none` (dense), `ignored`.
        sparsity: share of zeros over the locked weights, in [0, 1].
        nonzero_outside_masks: counted after training; 0, or the run would have failed.
        train_seconds: of the training loop, measurements between its epochs included.
        seconds: of everything from reading the data to writing the model.
        warnings: what the user was warned of.
        teacher: folder of the model that was learnt from; None without distillation.
        int8_layers: layers that were trained in int8; 0 without quantization.
    """

    output: Path
    model_folder: Path
    metric: str
    score: float
    metrics: dict[str, dict[str, float]]
    examples: dict[str, int]
    masks: str
    sparsity: float
    nonzero_outside_masks: int
    train_seconds: float
    seconds: float
    warnings: list[str] = field(default_factory=list)
    teacher: str | None = None
    int8_layers: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the fields with paths as text."""
        return {**asdict(self), "output": str(self.output), "model_folder": str(self.model_folder)}


def render_result(result: FinetuneResult, console: Console) -> None:
    """Print a row per held-out split, then the state of the masks."""
    first = next(iter(result.metrics.values()))
    table = Table(
        title=f"{result.output}  (trained on {result.examples['train']:,} examples)", title_justify="left"
    )
    table.add_column("split")
    table.add_column("examples", justify="right")
    for name in first:
        table.add_column(name, justify="right", style="bold" if name == result.metric else "")
    for split, metrics in result.metrics.items():
        values = [f"{value:.4f}" for value in metrics.values()]
        table.add_row(split, f"{result.examples[split]:,}", *values)
    console.print(table)
    if result.teacher is not None:
        console.print(f"learnt from {result.teacher}", soft_wrap=True)
    if result.int8_layers:
        console.print(f"measured in int8: weights and activations of {result.int8_layers} layers rounded")
    if result.masks in ("file", "zeros"):
        console.print(
            f"masks locked (from the {result.masks}): {result.sparsity:.2%} of the prunable weights are zero, "
            f"{result.nonzero_outside_masks} outside the masks are not",
            soft_wrap=True,
        )
    console.print(f"trained in {result.train_seconds:.1f} s; model in {result.model_folder}", soft_wrap=True)
