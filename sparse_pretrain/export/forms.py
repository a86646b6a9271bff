"""Every deployable form of one model, written to a scratch folder: sizes, agreement with torch, files to time."""

import gzip
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from rich.console import Console
from transformers import PreTrainedModel

from sparse_pretrain.export.bitmask import BITMASK_FILE, export_bitmask
from sparse_pretrain.export.check import answers, compare
from sparse_pretrain.export.compression import encoder_compression
from sparse_pretrain.export.loading import load_model
from sparse_pretrain.export.onnx_graph import INT8_FILE, ONNX_FILE, write_int8, write_onnx
from sparse_pretrain.export.onnx_int8 import int8_model, observe, write_qdq
from sparse_pretrain.export.openvino import BIN_FILE, EXACT, XML_FILE, compile_settings, write_ir, zero_share
from sparse_pretrain.export.openvino import Precision as IrPrecision
from sparse_pretrain.export.reference import Reference, reference
from sparse_pretrain.export.runners import Run, onnx_runner, openvino_runner, torch_runner
from sparse_pretrain.export.unpack import unpack
from sparse_pretrain.export.values import Precision
from sparse_pretrain.models.prunable import prunable_weights

BITS = {"fp32": 32, "bf16": 16, "fp16": 16, "int8": 8}
# What the report times. OpenVINO's own choice of precision is bf16 on CPUs that have it in hardware.
ENGINES = ("torch", "onnxruntime", "onnxruntime int8", "openvino fp32", "openvino")
# The last one stays in the folder.
PRECISIONS: tuple[IrPrecision, ...] = ("int8", "fp16", "fp32")
Facts = dict[str, Any]


@dataclass(frozen=True)
class Forms:
    """The files of one model.

    Attributes:
        label: its name in the report.
        folder: scratch: `model.onnx`, `model.int8.onnx`, OpenVINO IR.
        reference: the torch model, inputs and answers.
        facts: for the report, JSON-able.
        twin: filled up with noise where the sparse model has zeros: for timing only.
    """

    label: str
    folder: Path
    reference: Reference
    facts: Facts
    twin: bool = False

    def runner(self, engine: str, threads: int) -> Run:
        """Return a runner of this model by an engine of `ENGINES`."""
        if engine == "torch":
            return torch_runner(self.reference.model, self.reference.layout.names)
        if engine.startswith("onnxruntime"):
            return onnx_runner(self.folder / (INT8_FILE if engine.endswith("int8") else ONNX_FILE), threads)
        settings: dict[str, Any] = dict(compile_settings(self.facts["sparsity"], None))
        return openvino_runner(
            self.folder / XML_FILE, settings | (EXACT if engine.endswith("fp32") else {}), threads
        )


def make_forms(
    source: str | Path,
    label: str,
    scratch: Path,
    texts: Path | None,
    inputs: int,
    threads: int,
    console: Console,
) -> Forms:
    """Write every form of a model, weigh them, and compare the engines' answers with torch's.

    Raises:
        UserError: no such model, or a package is missing.
    """
    folder = scratch / label
    folder.mkdir(parents=True)
    sizes, packed = weigh_weights(source, folder, console)
    torch_side = reference(source, texts, inputs, console)
    rounded = int8_model(source, None, torch_side.layout)
    sizes |= weigh_graphs(torch_side, rounded, folder, console)
    weights = packed["int8"]["prunable_weights"]
    facts: Facts = {
        "label": label,
        "source": str(source),
        "model": type(torch_side.model).__name__,
        "parameters": sum(parameter.numel() for parameter in torch_side.model.parameters()),
        "prunable_weights": weights,
        "sparsity": zero_share(torch_side.model),
        "bytes": sizes,
        "encoder_compression": {
            name: asdict(
                encoder_compression(
                    weights, packed[name]["kept_weights"], BITS[name], packed[name]["prunable_bytes"]
                )
            )
            for name in ("fp32", "fp16", "int8")
        },
        "int8": "dynamic" if rounded is None else "trained",
        "checked_with": "sentences" if torch_side.real else "random tokens",
    }
    forms = Forms(label, folder, torch_side, facts)
    facts["agreement"] = {
        engine: compare(
            torch_side.answers, answers(forms.runner(engine, threads), torch_side.batches)
        ).to_json()
        for engine in ENGINES[1:]
    }
    return forms


def weigh_weights(
    source: str | Path, folder: Path, console: Console
) -> tuple[dict[str, int], dict[str, Facts]]:
    """Return bytes of the weights' own formats, and what `export bitmask` says at each precision."""
    sizes: dict[str, int] = {}
    packed: dict[str, Facts] = {}
    quiet = Console(quiet=True)
    with console.status(f"{folder.name}: weights"):
        for precision in get_args(Precision):
            if precision in ("exact", "bf16"):
                continue
            target = folder / f"bitmask-{precision}"
            packed[precision] = export_bitmask(source, target, quiet, precision)
            sizes[f"bitmask {precision}"] = packed[precision]["bytes"]
        small = export_bitmask(source, folder / "bitmask-small", quiet, "int8", others="fp16")
        sizes["bitmask int8, rest fp16"] = small["bytes"]
        dense = folder / "dense"
        sizes["safetensors dense"] = unpack(folder / "bitmask-fp32" / BITMASK_FILE, dense, quiet)["bytes"]
        sizes["safetensors dense, gzip"] = gzip_size(dense / "model.safetensors", folder / "dense.gz")
    return sizes, packed


def gzip_size(file: Path, scratch: Path) -> int:
    """Return how many bytes a file takes after `gzip -6`."""
    with file.open("rb") as source, gzip.open(scratch, "wb", compresslevel=6) as target:
        shutil.copyfileobj(source, target, 2**20)
    size = scratch.stat().st_size
    scratch.unlink()
    return size


def weigh_graphs(
    torch_side: Reference, rounded: PreTrainedModel | None, folder: Path, console: Console
) -> dict[str, int]:
    """Write ONNX, int8 ONNX and OpenVINO IR (fp32 last: it stays for the timing); return their bytes.

    Int8 is that of `rounded`, the torch model that rounds by trained scales, or else dynamic.
    """
    sizes = {}
    with console.status(f"{folder.name}: ONNX, OpenVINO"):
        write_onnx(torch_side.model, torch_side.layout, folder / ONNX_FILE)
        sizes["ONNX fp32"] = sum(path.stat().st_size for path in folder.glob(f"{ONNX_FILE}*"))
        if rounded is None:
            write_int8(folder / ONNX_FILE, folder / INT8_FILE)
        else:
            write_qdq(rounded, torch_side.layout, folder / INT8_FILE)
        sizes["ONNX int8"] = (folder / INT8_FILE).stat().st_size
        graphs = {"fp16": ONNX_FILE, "fp32": ONNX_FILE}
        for precision in PRECISIONS if rounded is not None else PRECISIONS[1:]:
            write_ir(folder / graphs.get(precision, INT8_FILE), folder / XML_FILE, precision)
            sizes[f"OpenVINO {precision}"] = sum(
                (folder / name).stat().st_size for name in (XML_FILE, BIN_FILE)
            )
    return sizes


def dense_twin(sparse: Forms, scratch: Path, load: Callable[[str], Any] = load_model) -> Forms:
    """Return the same network with noise in the place of its zeros: what the zeros save, and nothing else differs.

    Only for timing; its answers mean nothing.
    """
    model = load(sparse.facts["source"])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in prunable_weights(model).values():
            noise = torch.randn(weight.shape, generator=generator) * weight.std().clamp_min(1e-3)
            weight.copy_(torch.where(weight == 0, noise, weight))
    label = f"{sparse.label} without zeros"
    folder = scratch / label
    folder.mkdir(parents=True)
    layout = sparse.reference.layout
    write_onnx(model, layout, folder / ONNX_FILE)
    if sparse.facts["int8"] == "trained":
        observe(model, sparse.reference.batches, layout)
        write_qdq(model, layout, folder / INT8_FILE)
    else:
        write_int8(folder / ONNX_FILE, folder / INT8_FILE)
    write_ir(folder / ONNX_FILE, folder / XML_FILE, "fp32")
    facts = {
        **{key: sparse.facts[key] for key in ("source", "model", "parameters")},
        "label": label,
        "sparsity": 0.0,
    }
    return Forms(label, folder, Reference(model, layout, [], [], False), facts, twin=True)
