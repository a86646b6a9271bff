"""ONNX: the model with its task head, any batch and length, checked against torch; int8 beside it."""

from pathlib import Path

import torch
from rich.console import Console

from sparse_pretrain.export.check import FP32_TOLERANCE, compare
from sparse_pretrain.export.graph_folder import GraphJob, write_graph_folder
from sparse_pretrain.export.onnx_graph import INT8_FILE, ONNX_FILE, write_int8, write_onnx
from sparse_pretrain.export.onnx_int8 import INT8_TOLERANCE, write_qdq
from sparse_pretrain.export.reference import (
    CHECK_INPUTS,
    Facts,
    Reference,
    check_run,
    int8_kind,
    int8_reference,
)
from sparse_pretrain.export.runners import onnx_runner, require


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
    job = GraphJob(source, out, console, texts, inputs, overwrite, calibrate)

    def write_files(folder: Path, torch_side: Reference) -> Facts:
        with console.status("torch to ONNX"):
            write_onnx(torch_side.model, torch_side.layout, folder / ONNX_FILE)
        files = {ONNX_FILE: check_file(folder / ONNX_FILE, torch_side, FP32_TOLERANCE, console)}
        if int8 or calibrate is not None:
            files[INT8_FILE] = export_int8(job, folder, torch_side)
        return {"files": files}

    return write_graph_folder(job, "onnx", write_files)


def export_int8(job: GraphJob, folder: Path, torch_side: Reference) -> Facts:
    """Write int8 beside the fp32 file: trained, static or dynamic; return what `check_file` does, and which it is.

    Raises:
        UserError: the sentences to calibrate on cannot be used.
        CheckError: the file answers differently from the torch model that rounds by the same scales.
    """
    with job.console.status("torch to int8 ONNX"):
        rounded = int8_reference(job.source, torch_side, job.calibrate)
        if rounded is None:
            write_int8(folder / ONNX_FILE, folder / INT8_FILE)
            # A baseline: its agreement is stated, not enforced.
            return {"int8": "dynamic", **check_file(folder / INT8_FILE, torch_side, None, job.console)}
        write_qdq(rounded.model, rounded.layout, folder / INT8_FILE)
    from_fp32 = compare(torch_side.answers, rounded.answers).to_json()
    checked = check_file(folder / INT8_FILE, rounded, INT8_TOLERANCE, job.console)
    return {"int8": int8_kind(job.calibrate), **checked, "torch_int8_against_fp32": from_fp32}


def check_file(file: Path, torch_side: Reference, tolerance: float | None, console: Console) -> Facts:
    """Return size and agreement with torch of an ONNX file.

    Raises:
        CheckError: the agreement is worse than the tolerance.
    """
    run = onnx_runner(file, torch.get_num_threads())
    checked = check_run(run, torch_side, tolerance, file.name, console)
    weights = file.with_name(f"{file.name}.data")
    size = file.stat().st_size + (weights.stat().st_size if weights.exists() else 0)
    return {"bytes": size, **checked}
