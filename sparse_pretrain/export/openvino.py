"""OpenVINO IR (fp32, fp16, int8), made from the checked ONNX graph; with the compile setting for sparse weights."""

import tempfile
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from transformers import PreTrainedModel

from sparse_pretrain.errors import UserError
from sparse_pretrain.export.check import FP16_TOLERANCE, FP32_TOLERANCE
from sparse_pretrain.export.graph_folder import GraphJob, write_graph_folder
from sparse_pretrain.export.onnx_graph import ONNX_FILE, write_onnx
from sparse_pretrain.export.onnx_int8 import INT8_TOLERANCE, write_qdq
from sparse_pretrain.export.reference import (
    CHECK_INPUTS,
    Facts,
    Reference,
    check_run,
    int8_kind,
    int8_reference,
)
from sparse_pretrain.export.runners import Run, openvino_runner, require
from sparse_pretrain.export.target import EXPORT_FILE
from sparse_pretrain.files import read_json
from sparse_pretrain.models.prunable import prunable_weights

# The names that optimum-intel looks for.
XML_FILE = "openvino_model.xml"
BIN_FILE = "openvino_model.bin"
SPARSE_RATE = "CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE"
Precision = Literal["fp32", "fp16", "int8"]
# The largest difference from torch that is let through, as a share of the largest output.
TOLERANCES: dict[Precision, float] = {
    "fp32": FP32_TOLERANCE,
    "fp16": FP16_TOLERANCE,
    "int8": INT8_TOLERANCE,
}
# On CPUs with AMX OpenVINO computes in bf16 unless told otherwise: no base for a check.
EXACT = {"INFERENCE_PRECISION_HINT": "f32"}
# Below the target: single matrices scatter around it, and one below the rate stays dense.
MARGIN = 0.05
# With fewer zeros, unpacking costs more than the memory traffic it saves.
LEAST_RATE = 0.5


def export_openvino(
    source: str | Path,
    out: Path,
    console: Console,
    precision: Precision = "fp16",
    sparse_rate: float | None = None,
    texts: Path | None = None,
    inputs: int = CHECK_INPUTS,
    overwrite: bool = False,
    calibrate: Path | None = None,
) -> Facts:
    """Write a model as OpenVINO IR, config and tokenizer beside it.

    Args:
        source: release, fine-tuned model, bitmask folder, any Hugging Face folder or hub name.
        out: the folder to make.
        console: shows progress.
        precision: of the stored weights; computation is the compiler's choice. int8 needs a model that was trained in
            int8, or `calibrate`.
        sparse_rate: share of zeros, in [0, 1], from which a matrix is compiled with its zeros left out; kept in
            `export.json`, for IR has no place for it. None: from the model's own zeros.
        texts: a file of sentences to check with; None: random tokens.
        inputs: how many to check with.
        overwrite: replace an earlier export at `out`.
        calibrate: sentences to find int8 scales on, without training.

    Returns:
        JSON-able: size in bytes, agreement with torch, compile settings.

    Raises:
        UserError: no such model, a package is missing, or the disk refused.
        CheckError: the written model answers differently from torch.
    """
    for package in ("onnx", "onnxscript", "openvino"):
        require(package)
    if sparse_rate is not None and not 0.0 <= sparse_rate <= 1.0:
        raise UserError(f"--sparse-rate = {sparse_rate}: must be between 0 and 1, such as 0.8")
    job = GraphJob(source, out, console, texts, inputs, overwrite, calibrate)

    def write_files(folder: Path, torch_side: Reference) -> Facts:
        if precision == "int8":
            torch_side = rounding_reference(job, torch_side)
        with (
            console.status("torch to ONNX to OpenVINO"),
            tempfile.TemporaryDirectory(dir=folder.parent) as scratch,
        ):
            graph = Path(scratch) / ONNX_FILE
            write = write_qdq if precision == "int8" else write_onnx
            write(torch_side.model, torch_side.layout, graph)
            write_ir(graph, folder / XML_FILE, precision)
        sparsity = zero_share(torch_side.model)
        settings = compile_settings(sparsity, sparse_rate)
        run = openvino_runner(folder / XML_FILE, {**settings, **EXACT}, torch.get_num_threads())
        checked = check_run(run, torch_side, TOLERANCES[precision], XML_FILE, console)
        size = sum((folder / name).stat().st_size for name in (XML_FILE, BIN_FILE))
        scales = {"int8": int8_kind(calibrate)} if precision == "int8" else {}
        return {
            "precision": precision,
            "sparsity": sparsity,
            "compile_settings": settings,
            "files": {XML_FILE: {**scales, "bytes": size, **checked}},
        }

    return write_graph_folder(job, "openvino", write_files)


def rounding_reference(job: GraphJob, torch_side: Reference) -> Reference:
    """Return the torch model that rounds, with its answers.

    Raises:
        UserError: the source has no scales and gets none.
    """
    rounded = int8_reference(job.source, torch_side, job.calibrate)
    if rounded is None:
        raise UserError(
            f"{job.source}: was not trained in int8, so it has no scales; fine-tune it with a `quantization:` "
            "section, or give sentences to find scales on: --calibrate FILE"
        )
    return rounded


def zero_share(model: PreTrainedModel) -> float:
    """Return the share of zeros among the prunable weights."""
    weights = prunable_weights(model).values()
    kept = sum(int(torch.count_nonzero(weight)) for weight in weights)
    return 1.0 - kept / sum(weight.numel() for weight in weights)


def write_ir(graph: Path, file: Path, precision: Precision) -> None:
    """Convert an ONNX file (int8: one with QuantizeLinear, which IR stores in int8) to `.xml` and `.bin`."""
    import openvino

    openvino.save_model(openvino.convert_model(graph), file, compress_to_fp16=precision == "fp16")


def compile_settings(sparsity: float, rate: float | None) -> dict[str, float]:
    """Return the compiler's settings for a model of this sparsity; none where leaving out zeros would not pay."""
    if rate is None:
        rate = round(sparsity - MARGIN, 2)
        return {SPARSE_RATE: rate} if rate >= LEAST_RATE else {}
    return {SPARSE_RATE: rate}


def load_openvino(folder: Path, threads: int = 0, **settings: Any) -> Run:
    """Return a runner of an exported folder, compiled with the settings it was exported with, and `settings`.

    Args:
        folder: what `export openvino` wrote.
        threads: cores used; 0: OpenVINO's choice.
        settings: override the folder's.

    Raises:
        UserError: no such export, or OpenVINO is not installed.
    """
    own = read_json(folder / EXPORT_FILE).get("compile_settings", {})
    if not (folder / XML_FILE).is_file():
        raise UserError(f"{folder}: no {XML_FILE} here (`sparse-pretrain export openvino` makes one)")
    return openvino_runner(folder / XML_FILE, {**own, **settings}, threads)
