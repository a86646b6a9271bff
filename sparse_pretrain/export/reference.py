"""What every exported graph is compared with: a torch model, inputs, and its answers to them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PreTrainedModel

from sparse_pretrain.errors import UserError
from sparse_pretrain.export.check import answers, compare, must_agree
from sparse_pretrain.export.inputs import (
    Array,
    Batch,
    InputLayout,
    batches,
    input_layout,
    random_rows,
    read_sentences,
    sentence_rows,
)
from sparse_pretrain.export.loading import load_model, load_tokenizer
from sparse_pretrain.export.onnx_int8 import int8_answers, int8_model
from sparse_pretrain.export.runners import Run, torch_runner
from sparse_pretrain.telemetry.bar import progress_bar

CHECK_INPUTS = 100
CHECK_BATCH = 10
# Where int8 scales come from, as `export.json` has it.
TRAINED, STATIC = "trained", "static"
Facts = dict[str, Any]


@dataclass(frozen=True)
class Reference:
    """A torch model and its answers on the inputs that its other forms are checked with.

    Attributes:
        model: in evaluation mode.
        layout: what it takes.
        batches: the inputs.
        answers: its outputs, batch by batch.
        real: the inputs are sentences, not random tokens.
    """

    model: PreTrainedModel
    layout: InputLayout
    batches: list[Batch]
    answers: list[list[Array]]
    real: bool


def reference(source: str | Path, texts: Path | None, inputs: int, console: Console) -> Reference:
    """Load a model and let it answer `inputs` inputs: lines of `texts`, or random tokens.

    Raises:
        UserError: no such model, or `texts` without sentences or without a tokenizer.
    """
    model = load_model(source)
    layout = input_layout(model)
    if texts is None:
        rows = random_rows(model.config, inputs, layout.positions)
    else:
        tokenizer = load_tokenizer(source)
        if tokenizer is None:
            raise UserError(f"{source}: has no tokenizer for the sentences of {texts}")
        rows = sentence_rows(tokenizer, read_sentences(texts), inputs, layout.positions)
    inputs_in_batches = batches(rows, layout, model.config.pad_token_id or 0, CHECK_BATCH)
    with progress_bar(console, transient=True) as bar:
        task = bar.add_task("torch", total=len(inputs_in_batches), numbers="batches")
        run = torch_runner(model, layout.names)
        found = list(answers(run, inputs_in_batches, lambda: bar.advance(task)))
    return Reference(model, layout, inputs_in_batches, found, texts is not None)


def int8_reference(source: str | Path, torch_side: Reference, calibrate: Path | None) -> Reference | None:
    """Return the torch model that rounds, with its answers; None for a source that has no scales and gets none.

    Raises:
        UserError: the sentences to calibrate on cannot be used.
    """
    model = int8_model(source, calibrate, torch_side.layout)
    if model is None:
        return None
    found = int8_answers(model, torch_side.layout, torch_side.batches)
    return replace(torch_side, model=model, answers=found)


def int8_kind(calibrate: Path | None) -> str:
    """Return where the scales of a reference that rounds come from: training, or sentences."""
    return TRAINED if calibrate is None else STATIC


def check_run(run: Run, torch_side: Reference, tolerance: float | None, name: str, console: Console) -> Facts:
    """Return how far a written file is from torch, and what is allowed (None: anything).

    Raises:
        CheckError: the agreement is worse than the tolerance.
    """
    with progress_bar(console, transient=True) as bar:
        task = bar.add_task(name, total=len(torch_side.batches), numbers="batches")
        agreement = compare(torch_side.answers, answers(run, torch_side.batches, lambda: bar.advance(task)))
    if tolerance is not None:
        must_agree(agreement, tolerance, name, "; nothing was written")
    return {"tolerance": tolerance, **agreement.to_json()}
