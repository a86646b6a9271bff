"""ONNX: the model with its task head, any batch and length, checked against torch; int8 beside it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import PreTrainedModel

from sparse_pretrain.errors import UserError
from sparse_pretrain.export.check import FP32_TOLERANCE, Agreement, answers, compare, must_agree
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
from sparse_pretrain.export.onnx_graph import INT8_FILE, ONNX_FILE, write_int8, write_onnx
from sparse_pretrain.export.onnx_int8 import INT8_TOLERANCE, int8_answers, int8_model, write_qdq
from sparse_pretrain.export.runners import onnx_runner, require, torch_runner
from sparse_pretrain.export.target import EXPORT_FILE, copy_companions, staged_folder
from sparse_pretrain.files import write_json
from sparse_pretrain.models.loading import could_be_hub_name
from sparse_pretrain.telemetry.bar import progress_bar

CHECK_INPUTS = 100
CHECK_BATCH = 10
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


def export_onnx(
    source: str | Path,
    out: Path,
    console: Console,
    int8: bool = False,
    texts: Path | None = None,
    inputs: int = CHECK_INPUTS,
    overwrite: bool = False,
    calibrate: Path | None = None,
) -> Facts:
    """Write a model as `model.onnx` (and `model.int8.onnx`), config and tokenizer beside it.

    Args:
        source: release, fine-tuned model, bitmask folder, any Hugging Face folder or hub name.
        out: the folder to make.
        console: shows progress.
        int8: also write int8: by the scales of a model that was trained in int8, else onnxruntime's dynamic int8,
            the baseline without training.
        texts: a file of sentences to check with; None: random tokens.
        inputs: how many to check with.
        overwrite: replace an earlier export at `out`.
        calibrate: sentences; int8 is written by scales that are found on them, without training (static int8).

    Returns:
        JSON-able: sizes in bytes and agreement with torch of each file.

    Raises:
        UserError: no such model, a package is missing, or the disk refused.
        CheckError: a file answers differently from torch; dynamic int8, which has no torch model, may.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(package)
    out = out.expanduser()
    with staged_folder(out, overwrite) as folder:
        torch_side = reference(source, texts, inputs, console)
        with console.status("torch to ONNX"):
            write_onnx(torch_side.model, torch_side.layout, folder / ONNX_FILE)
        facts: Facts = {
            "format": "onnx",
            "source": str(source),
            "model": type(torch_side.model).__name__,
            "inputs": list(torch_side.layout.names),
            "checked_with": "sentences" if torch_side.real else "random tokens",
            "files": {ONNX_FILE: check_file(folder / ONNX_FILE, torch_side, FP32_TOLERANCE, console)},
        }
        if int8 or calibrate is not None:
            facts["files"][INT8_FILE] = export_int8(source, folder, torch_side, calibrate, console)
        companions(source, torch_side.model, folder)
        write_json(folder / EXPORT_FILE, facts)
    return facts


def export_int8(
    source: str | Path, folder: Path, torch_side: Reference, calibrate: Path | None, console: Console
) -> Facts:
    """Write int8 beside the fp32 file: trained, static or dynamic; return what `check_file` does, and which it is.

    Raises:
        UserError: the sentences to calibrate on cannot be used.
        CheckError: the file answers differently from the torch model that rounds by the same scales.
    """
    with console.status("torch to int8 ONNX"):
        rounded = int8_reference(source, torch_side, calibrate)
        if rounded is None:
            write_int8(folder / ONNX_FILE, folder / INT8_FILE)
            # A baseline: its agreement is stated, not enforced.
            return {"int8": "dynamic", **check_file(folder / INT8_FILE, torch_side, None, console)}
        write_qdq(rounded.model, rounded.layout, folder / INT8_FILE)
    kind = "trained" if calibrate is None else "static"
    from_fp32 = compare(torch_side.answers, rounded.answers).to_json()
    checked = check_file(folder / INT8_FILE, rounded, INT8_TOLERANCE, console)
    return {"int8": kind, **checked, "torch_int8_against_fp32": from_fp32}


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


def check_file(file: Path, torch_side: Reference, tolerance: float | None, console: Console) -> Facts:
    """Return size and agreement with torch of an ONNX file.

    Raises:
        CheckError: the agreement is worse than the tolerance.
    """
    with progress_bar(console, transient=True) as bar:
        task = bar.add_task(file.name, total=len(torch_side.batches), numbers="batches")
        run = onnx_runner(file, torch.get_num_threads())
        agreement: Agreement = compare(
            torch_side.answers, answers(run, torch_side.batches, lambda: bar.advance(task))
        )
    if tolerance is not None:
        must_agree(agreement, tolerance, file.name)
    weights = file.with_name(f"{file.name}.data")
    size = file.stat().st_size + (weights.stat().st_size if weights.exists() else 0)
    return {"bytes": size, "tolerance": tolerance, **agreement.to_json()}


def companions(source: str | Path, model: PreTrainedModel, folder: Path) -> None:
    """Put config and tokenizer beside an exported graph."""
    path = Path(source).expanduser()
    found = next((place for place in (path, path / "model") if (place / "config.json").is_file()), None)
    if found is not None:
        copy_companions(found, folder)
    elif could_be_hub_name(str(source)):
        model.config.save_pretrained(folder)
        tokenizer = load_tokenizer(source)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
