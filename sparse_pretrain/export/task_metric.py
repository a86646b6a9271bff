"""Exported files on the task's own data: its metric, what counts in the end, and how far single outputs are off."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from sparse_pretrain.errors import FailedError
from sparse_pretrain.export.candidates import Candidate, candidates_in, refuse_another_model
from sparse_pretrain.export.inputs import input_layout, padded
from sparse_pretrain.export.reference import CHECK_INPUTS
from sparse_pretrain.export.runners import Run, output_names
from sparse_pretrain.export.task_inputs import TaskAnswers, refuse_different, torch_answers
from sparse_pretrain.finetune.evaluate import Evaluation, prepare_evaluation
from sparse_pretrain.finetune.tasks import VALIDATION
from sparse_pretrain.telemetry.bar import progress_bar

BATCH_SIZE = 32
# A hair: a metric of exactly the allowed difference passes whatever its last digit.
ROUNDING = 1e-9
TORCH = "torch"
Facts = dict[str, Any]


class MetricError(FailedError):
    """An exported file is worse at its task than is allowed."""


class EngineModel(nn.Module):
    """An exported file in the place of a torch model: takes and gives tensors by name."""

    def __init__(self, run: Run, inputs: tuple[str, ...], outputs: list[str]) -> None:
        """Run `run` with the inputs of these names, in order; its outputs have these names, in order."""
        super().__init__()
        self.run = run
        self.inputs = inputs
        self.outputs = outputs

    def forward(self, **inputs: Tensor) -> SimpleNamespace:
        """Return the outputs as attributes."""
        # Tokenizers of some models give no segments; torch models then take them for zeros.
        zeros = torch.zeros_like(inputs["input_ids"])
        found = self.run({name: inputs.get(name, zeros).numpy() for name in self.inputs})
        return SimpleNamespace(
            **{name: torch.from_numpy(array) for name, array in zip(self.outputs, found, strict=True)}
        )


def check_metric(
    source: str | Path,
    exports: list[Path],
    console: Console,
    task: str | None = None,
    split: str = VALIDATION,
    within: float | None = None,
    overrides: tuple[str, ...] = (),
) -> Facts:
    """Measure a fine-tuned model and its exported files on the task's data.

    Args:
        source: fine-tuning run, or its model folder.
        exports: folders that `export onnx` or `export openvino` wrote.
        console: shows progress.
        task: a fine-tuning recipe; None: the one the model was fine-tuned with.
        split: of the task.
        within: how much worse than torch a file may be; None: whatever it is.
        overrides: `key=value` changes of the recipe.

    Returns:
        JSON-able: the metrics of torch (rounding, for a model trained in int8) and of each file; `agreement`: how far
        each file's outputs are from torch's on the split's first hundred rows, computing in fp32.

    Raises:
        UserError: no such model, recipe or export, or the export of another kind of model.
        MetricError: a file is worse than is allowed.
        CheckError: a file's outputs are further from torch's than its own `export.json` allows.
    """
    candidates = [candidate for folder in exports for candidate in candidates_in(folder)]
    evaluation = prepare_evaluation(source, task, split, "fp32", overrides)
    for candidate in candidates:
        refuse_another_model(candidate, type(evaluation.network).__name__, source)
    results: dict[str, Facts] = {}
    with progress_bar(console, transient=True) as bar:
        shown = bar.add_task("measuring", total=1 + len(candidates), numbers=TORCH)
        results[TORCH] = timed(evaluation, evaluation.network)
        expected = torch_answers(evaluation, CHECK_INPUTS)
        for candidate in candidates:
            bar.update(shown, advance=1, numbers=candidate.file)
            results[candidate.file] = measured(evaluation, candidate, expected)
    facts: Facts = {
        "model": str(source),
        "int8": evaluation.is_int8,
        "split": split,
        "examples": len(evaluation.examples.examples),
        "metric": evaluation.headline,
        "within": within,
        "results": with_differences(results, evaluation.headline),
    }
    refuse_worse(facts)
    refuse_different(facts["results"])
    return facts


def measured(evaluation: Evaluation, candidate: Candidate, expected: TaskAnswers) -> Facts:
    """Return what there is to say of a file: metrics, seconds, agreement with torch, and what is allowed of it."""
    return {
        **timed(evaluation, engine_model(evaluation, candidate.open())),
        "agreement": expected.compare_with(candidate.open_exact(), candidate.is_rounded).to_json(),
        "tolerance": candidate.tolerance,
    }


def metric_by_engine(source: str | Path, runs: Mapping[str, Callable[[], Run]]) -> Facts:
    """Return the headline metric of a fine-tuned model on its own validation data, through each of some engines.

    Raises:
        UserError: the model has no recipe beside it, or its data are not there.
    """
    evaluation = prepare_evaluation(source, None, VALIDATION, "fp32")
    scores = {
        name: evaluation.measure(engine_model(evaluation, start()), BATCH_SIZE)[evaluation.headline]
        for name, start in runs.items()
    }
    return {"metric": evaluation.headline, "scores": scores}


def engine_model(evaluation: Evaluation, run: Run) -> EngineModel:
    """Return an exported file that can take the place of the evaluation's torch model."""
    layout = input_layout(evaluation.network)
    outputs = output_names(evaluation.network, padded([[1, 1], [1]], layout, 0))
    return EngineModel(run, layout.names, outputs)


def timed(evaluation: Evaluation, network: nn.Module) -> Facts:
    """Return metrics and seconds."""
    started = time.perf_counter()
    metrics = evaluation.measure(network, BATCH_SIZE)
    return {"metrics": metrics, "seconds": round(time.perf_counter() - started, 3)}


def with_differences(results: dict[str, Facts], metric: str) -> dict[str, Facts]:
    """Return the results with the headline metric as `score`, and how much worse than torch it is (`worse_by`)."""
    best = results[TORCH]["metrics"][metric]
    sign = -1 if metric == "rmse" else 1
    return {
        name: {
            "score": result["metrics"][metric],
            "worse_by": sign * (best - result["metrics"][metric]),
            **result,
        }
        for name, result in results.items()
    }


def refuse_worse(facts: Facts) -> None:
    """Raise when a file is worse than torch by more than is allowed.

    Raises:
        MetricError: naming it.
    """
    if facts["within"] is None:
        return
    for name, result in facts["results"].items():
        # Not a comparison for "more", so that NaN is refused too.
        if not result["worse_by"] <= facts["within"] + ROUNDING:
            raise MetricError(
                f"{name}: {facts['metric']} {result['score']:.4f}, torch has "
                f"{facts['results'][TORCH]['score']:.4f}; allowed are {facts['within']:g} less"
            )


def render_metric(facts: Facts, console: Console) -> None:
    """Print a row for torch and each file; differences are those of single outputs on a hundred inputs."""
    rounding = "weights and activations rounded to int8" if facts["int8"] else "fp32"
    table = Table(
        title=f"{facts['model']}: {facts['examples']:,} examples of {facts['split']}; torch: {rounding}",
        title_justify="left",
    )
    table.add_column("file", overflow="fold")
    table.add_column(facts["metric"], justify="right")
    table.add_column("against torch", justify="right")
    table.add_column("largest difference", justify="right")
    table.add_column("s", justify="right")
    for name, result in facts["results"].items():
        against = difference = ""
        if name != TORCH:
            agreement = result["agreement"]
            against = f"{-result['worse_by']:+.4f}"
            difference = f"{agreement['max_difference']:.2g} of {agreement['largest_output']:.3g}"
        table.add_row(name, f"{result['score']:.4f}", against, difference, f"{result['seconds']:.1f}")
    console.print(table)
