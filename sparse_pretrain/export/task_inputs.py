"""Real inputs of a task, and torch's answers to them: what exported files are compared with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sparse_pretrain.export.check import Agreement, answers, compare, must_agree
from sparse_pretrain.export.inputs import Array, Batch, InputLayout, input_layout
from sparse_pretrain.export.runners import Run, torch_runner
from sparse_pretrain.finetune.evaluate import Evaluation
from sparse_pretrain.quantization.prepare import set_phase

ROWS_PER_BATCH = 10


@dataclass(frozen=True)
class TaskAnswers:
    """A task's inputs, and torch's outputs for them, batch by batch.

    Attributes:
        batches: the inputs.
        plain: outputs of the torch model without rounding.
        rounded: outputs of the torch model that rounds by trained scales; the same for a model that has none.
    """

    batches: list[Batch]
    plain: list[list[Array]]
    rounded: list[list[Array]]

    def compare_with(self, run: Run, is_rounded: bool) -> Agreement:
        """Return how alike an engine's answers are to torch's, with or without rounding."""
        return compare(self.rounded if is_rounded else self.plain, answers(run, self.batches))


def torch_answers(evaluation: Evaluation, count: int) -> TaskAnswers:
    """Return the first `count` rows of an evaluation's split as inputs, with torch's answers."""
    network = evaluation.network.eval()
    layout = input_layout(network)
    inputs = task_batches(evaluation, layout, count)
    run = torch_runner(network, layout.names)
    rounded = list(answers(run, inputs))
    if not evaluation.is_int8:
        return TaskAnswers(inputs, rounded, rounded)
    set_phase(network, observe=False, rounding=False)
    plain = list(answers(run, inputs))
    set_phase(network, observe=False, rounding=True)
    return TaskAnswers(inputs, plain, rounded)


def task_batches(evaluation: Evaluation, layout: InputLayout, count: int) -> list[Batch]:
    """Return the first `count` rows that the model sees (windows, for spans), as batches of what it takes."""
    encoded = evaluation.examples.encoded
    chosen = range(min(count, len(encoded)))
    return [
        task_batch(evaluation, layout, [encoded[row] for row in chosen[first : first + ROWS_PER_BATCH]])
        for first in range(0, len(chosen), ROWS_PER_BATCH)
    ]


def task_batch(evaluation: Evaluation, layout: InputLayout, rows: Sequence[dict[str, Any]]) -> Batch:
    """Return encoded rows as one padded batch."""
    tensors = evaluation.kind.inputs(evaluation.collate(list(rows)))
    # Tokenizers of some models give no segments; torch models then take them for zeros.
    zeros = torch.zeros_like(tensors["input_ids"])
    return {name: np.ascontiguousarray(tensors.get(name, zeros).numpy()) for name in layout.names}


def refuse_different(results: dict[str, dict[str, Any]]) -> None:
    """Raise when a file's outputs are further from torch's than is allowed of it.

    Raises:
        CheckError: naming it.
    """
    for name, result in results.items():
        if result.get("tolerance") is not None:
            must_agree(Agreement(**result["agreement"]), result["tolerance"], name, " (inputs of the task)")
