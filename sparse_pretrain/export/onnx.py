"""ONNX: the model with its task head, any batch and length, checked against torch; int8 by onnxruntime beside it."""

import io
import tempfile
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import PreTrainedModel

from sparse_pretrain.checkpoint.quiet import quiet_libraries
from sparse_pretrain.errors import UserError
from sparse_pretrain.export.check import FP32_TOLERANCE, Agreement, answers, compare, must_agree
from sparse_pretrain.export.inputs import (
    Array,
    Batch,
    InputLayout,
    batches,
    input_layout,
    padded,
    random_rows,
    read_sentences,
    sentence_rows,
)
from sparse_pretrain.export.loading import load_model, load_tokenizer
from sparse_pretrain.export.runners import OutputsOnly, onnx_runner, output_names, require, torch_runner
from sparse_pretrain.export.target import EXPORT_FILE, copy_companions, staged_folder
from sparse_pretrain.files import write_json
from sparse_pretrain.models.loading import could_be_hub_name
from sparse_pretrain.telemetry.bar import progress_bar

ONNX_FILE = "model.onnx"
INT8_FILE = "model.int8.onnx"
# The protobuf library stops at 2 GB; from here on the weights lie in a file of their own.
LARGEST_SINGLE_FILE = 1_900_000_000
CHECK_INPUTS = 100
CHECK_BATCH = 10
EXAMPLE_LENGTH = 16
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
) -> Facts:
    """Write a model as `model.onnx` (and `model.int8.onnx`), config and tokenizer beside it.

    Args:
        source: release, fine-tuned model, bitmask folder, any Hugging Face folder or hub name.
        out: the folder to make.
        console: shows progress.
        int8: also quantise to dynamic int8 (onnxruntime's, the baseline without training).
        texts: a file of sentences to check with; None: random tokens.
        inputs: how many to check with.
        overwrite: replace an earlier export at `out`.

    Returns:
        JSON-able: sizes in bytes and agreement with torch of each file.

    Raises:
        UserError: no such model, a package is missing, or the disk refused.
        CheckError: the fp32 file answers differently from torch.
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
        if int8:
            with console.status("quantising to dynamic int8"):
                write_int8(folder / ONNX_FILE, folder / INT8_FILE)
            # A baseline: its agreement is stated, not enforced.
            facts["files"][INT8_FILE] = check_file(folder / INT8_FILE, torch_side, None, console)
        companions(source, torch_side.model, folder)
        write_json(folder / EXPORT_FILE, facts)
    return facts


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


def write_onnx(model: PreTrainedModel, layout: InputLayout, file: Path) -> None:
    """Trace a model by torch.export and write it with free batch and length (and choices).

    Raises:
        UserError: torch cannot express the model in ONNX.
    """
    # Two rows and sixteen tokens: a size of 1 would be taken for a constant.
    length = min(EXAMPLE_LENGTH, layout.positions)
    example = padded([[1] * length, [1] * (length - 1)], layout, 0)
    axes = {0: "batch", 1: "choices", 2: "length"} if layout.choices else {0: "batch", 1: "length"}
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    try:
        with quiet_libraries(), torch.no_grad(), redirect_stdout(io.StringIO()):
            torch.onnx.export(
                OutputsOnly(model, layout.names),
                tuple(torch.from_numpy(example[name]) for name in layout.names),
                file,
                dynamo=True,
                verbose=False,
                input_names=list(layout.names),
                output_names=output_names(model, example),
                dynamic_shapes=((axes,) * len(layout.names),),
                external_data=size > LARGEST_SINGLE_FILE,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise UserError(
            f"{type(model).__name__}: torch cannot write it as ONNX: {str(error)[:200]!r}"
        ) from None


def write_int8(source: Path, file: Path) -> None:
    """Quantise an ONNX file: int8 weights (symmetric: zeros stay zeros), activations at run time."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with quiet_libraries(), tempfile.TemporaryDirectory(dir=file.parent) as scratch:
        prepared = Path(scratch) / ONNX_FILE
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        # The quantiser turns Gemm into MatMul under the old names of intermediate results; with their old shapes
        # still on record its shape inference stops ("existing shape differ").
        graph = onnx.load(prepared)
        del graph.graph.value_info[:]
        onnx.save(graph, prepared, save_as_external_data=source.with_name(f"{source.name}.data").exists())
        quantize_dynamic(
            prepared,
            file,
            weight_type=QuantType.QInt8,
            per_channel=True,
            extra_options={"WeightSymmetric": True},
        )
