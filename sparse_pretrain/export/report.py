"""`export report`: what a sparse model weighs in every format, and how fast it is beside a dense one."""

import shutil
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console

from sparse_pretrain.checkpoint.folder import SPARSE_FROM, model_path
from sparse_pretrain.errors import UserError
from sparse_pretrain.export.forms import ENGINES, Facts, Forms, dense_twin, make_forms
from sparse_pretrain.export.inputs import full_batch
from sparse_pretrain.export.reference import CHECK_INPUTS
from sparse_pretrain.export.report_card import findings, markdown
from sparse_pretrain.export.report_plot import draw
from sparse_pretrain.export.runners import require
from sparse_pretrain.export.task_metric import metric_by_engine
from sparse_pretrain.export.timing import QUICK, THOROUGH, Pace, side_by_side, summary
from sparse_pretrain.files import read_json, write_json, write_text
from sparse_pretrain.processor import processor_flags, processor_name
from sparse_pretrain.telemetry.bar import progress_bar

SCRATCH = ".scratch"
METRICS = "metrics.json"


@dataclass(frozen=True)
class ReportSettings:
    """How much a report measures.

    Attributes:
        batches: numbers of inputs in a call.
        lengths: tokens of each input; those beyond a model's positions are left out.
        pace: how long each is measured.
        check_inputs: inputs to compare the formats' answers on.
        threads: cores used by every engine.
    """

    batches: tuple[int, ...] = (1, 32)
    lengths: tuple[int, ...] = (128, 384)
    pace: Pace = THOROUGH
    check_inputs: int = CHECK_INPUTS
    threads: int = 1


def quick_settings(threads: int) -> ReportSettings:
    """Return settings that show that everything works; the times mean little."""
    return ReportSettings((1, 2), (16, 32), QUICK, 10, threads)


def write_report(
    sources: list[str],
    output: Path,
    settings: ReportSettings,
    console: Console,
    texts: Path | None = None,
    measure_task: bool = False,
) -> Facts:
    """Measure models side by side; write `report.json`, `report.md`, `report.png`.

    A sparse model without a dense one of the same shape among the sources is compared with itself, its zeros
    filled with noise.

    Args:
        sources: model folders or hub names.
        output: folder for the three files; everything else written there is removed at the end.
        settings: how much is measured.
        console: shows progress.
        texts: sentences to compare answers on; None: random tokens.
        measure_task: also measure every engine on the validation data that a model was fine-tuned with.

    Raises:
        UserError: no such model, or a package is missing.
    """
    for package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        require(package)
    labels = label_sources(sources)
    output = output.expanduser()
    output.mkdir(parents=True, exist_ok=True)
    scratch = output / SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)
    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        models = [
            make_forms(source, label, scratch, texts, settings.check_inputs, settings.threads, console)
            for source, label in zip(sources, labels, strict=True)
        ]
        if measure_task:
            for model in models:
                with console.status(f"{model.label}: the task by every engine"):
                    runs = {engine: partial(model.runner, engine, settings.threads) for engine in ENGINES}
                    model.facts["task_metric"] = metric_by_engine(model.facts["source"], runs)
        pairs = pair_up(models, scratch, console)
        times = time_models(pairs, settings, console)
    finally:
        torch.set_num_threads(before)
        shutil.rmtree(scratch, ignore_errors=True)
    for model in models:
        model.facts["accuracy"] = accuracy(model.facts["source"])
    facts: Facts = {
        "machine": machine(settings.threads),
        "models": [model.facts for model in models],
        "times": times,
    }
    facts["findings"] = findings(facts)
    write_json(output / "report.json", facts)
    draw(facts, output / "report.png")
    write_text(output / "report.md", markdown(facts))
    return facts


def label_sources(sources: list[str]) -> list[str]:
    """Return a short name for every source, none twice; `model` and `release` folders take their parent's too."""
    labels: list[str] = []
    for source in sources:
        path = Path(source)
        label = f"{path.parent.name}-{path.name}" if path.name in ("model", "release") else path.name
        labels.append(label if label not in labels else f"{label}-{len(labels) + 1}")
    return labels


def pair_up(models: list[Forms], scratch: Path, console: Console) -> list[tuple[Forms, Forms]]:
    """Return (dense, sparse) for every sparse model; a dense model alone is paired with itself."""
    dense = [model for model in models if model.facts["sparsity"] < SPARSE_FROM]
    pairs = []
    for model in models:
        if model in dense:
            continue
        other = next((candidate for candidate in dense if same_shapes(candidate, model)), None)
        if other is None:
            with console.status(f"{model.label}: the same without zeros"):
                other = dense_twin(model, scratch)
        pairs.append((other, model))
    return pairs or [(model, model) for model in dense]


def same_shapes(first: Forms, second: Forms) -> bool:
    """Say whether two models cost the same but for their zeros: same class, same shapes."""
    shapes = [
        [(name, parameter.shape) for name, parameter in model.reference.model.named_parameters()]
        for model in (first, second)
    ]
    return first.facts["model"] == second.facts["model"] and shapes[0] == shapes[1]


def time_models(
    pairs: list[tuple[Forms, Forms]], settings: ReportSettings, console: Console
) -> list[dict[str, Any]]:
    """Return a row for every pair, engine, batch and length: both summaries, and dense / sparse of the medians."""
    rows = []
    cells = len(pairs) * len(ENGINES) * len(settings.batches) * len(settings.lengths)
    with progress_bar(console, transient=True) as bar:
        task = bar.add_task("timing", total=cells, numbers="")
        for dense, sparse in pairs:
            for engine in ENGINES:
                # Of one engine at a time: a large model five times would not fit into memory.
                runs = {
                    role: model.runner(engine, settings.threads)
                    for role, model in (("dense", dense), ("sparse", sparse))
                }
                for length in settings.lengths:
                    for size in settings.batches:
                        bar.update(task, advance=1, numbers=f"{engine}, batch {size}, length {length}")
                        layout = sparse.reference.layout
                        if length > layout.positions:
                            continue
                        batch = full_batch(layout, size, length, sparse.reference.model.config.vocab_size)
                        seconds = side_by_side(runs, batch, settings.pace)
                        both = {role: summary(values, size) for role, values in seconds.items()}
                        rows.append(
                            {
                                "model": sparse.label,
                                "compared_with": dense.label,
                                "engine": engine,
                                "batch": size,
                                "length": length,
                                **both,
                                "speedup": both["dense"]["median_ms"] / both["sparse"]["median_ms"],
                            }
                        )
    if not rows:
        raise UserError(f"no model takes inputs of {min(settings.lengths)} tokens; nothing was timed")
    return rows


def accuracy(source: str) -> dict[str, Any] | None:
    """Return the headline metric that fine-tuning wrote beside a model, None where there is none."""
    folder = Path(model_path(source))
    file = next((place / METRICS for place in (folder, folder.parent) if (place / METRICS).is_file()), None)
    if file is None:
        return None
    content = read_json(file)
    if not isinstance(content, dict) or "metric" not in content or "score" not in content:
        return None
    return {"metric": content["metric"], "score": content["score"], "file": str(file)}


def machine(threads: int) -> dict[str, Any]:
    """Return what the times depend on: processor, its matrix instructions, cores, versions."""
    wanted = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
    return {
        "processor": processor_name(),
        "instructions": [name for name in wanted if name in processor_flags()],
        "threads": threads,
        "cores": psutil.cpu_count(logical=False),
        "load_average": psutil.getloadavg()[0],
        "versions": {
            name: version(name) for name in ("torch", "transformers", "onnxruntime", "openvino", "onnx")
        },
    }
