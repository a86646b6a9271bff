"""How sparse is it, are its masks intact, where does it come from: for anything that holds a model."""

from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sparse_pretrain.checkpoint.contents import CheckpointModel
from sparse_pretrain.checkpoint.folder import (
    ModelFolder,
    masks_from_zeros,
    prunable_names,
    read_config,
    read_folder,
)
from sparse_pretrain.checkpoint.layout import CHECKPOINTS, is_checkpoint, resolve_checkpoint
from sparse_pretrain.checkpoint.store import read_checkpoint
from sparse_pretrain.files import sha256_file
from sparse_pretrain.pruning.masks import MaskSet

Report = dict[str, Any]


def inspect(path: str | Path) -> Report:
    """Describe a checkpoint, a run (its newest checkpoint), a release, or any Hugging Face folder or hub name.

    Returns:
        JSON-able: `source`, `kind`, `architecture`, `masks` (file, zeros or none), `layers` (a row per
        prunable weight), `prunable` and `total` (weights, zeros, sparsity), `check` (counts, problems,
        ok), `provenance`.

    Raises:
        UserError: nothing readable there.
    """
    folder = Path(path).expanduser()
    if is_checkpoint(folder) or (folder / CHECKPOINTS).is_dir():
        checkpoint = resolve_checkpoint(folder)
        return inspect_checkpoint(read_checkpoint(checkpoint), str(checkpoint))
    return inspect_folder(read_folder(path))


def inspect_checkpoint(contents: CheckpointModel, source: str) -> Report:
    """Describe a checkpoint. Its masters are dense by design, so its zeros are counted off the masks."""
    config = read_config(str(contents.model_folder))
    masks = contents.masks
    names = list(masks) if masks is not None else prunable_names(config, contents.weights)
    rows = [
        layer_row(name, contents.weights.get(name), mask_of(masks, name), dense_master=True) for name in names
    ]
    provenance: Report = {
        "step": contents.step,
        "data_fingerprint": contents.data_fingerprint,
        "metrics": contents.metrics,
        "versions": contents.versions,
    }
    where = "file" if masks is not None else "none"
    architecture = (config.architectures or [type(config).__name__])[0]
    return build_report(source, "checkpoint", architecture, where, rows, contents.weights, [], provenance)


def inspect_folder(folder: ModelFolder) -> Report:
    """Describe a model folder; without a mask file its zeros are the masks."""
    problems = release_problems(folder)
    if folder.masks is not None:
        masks, where = folder.masks, "file"
        names = list(folder.masks)
    else:
        names = prunable_names(folder.config, folder.weights)
        found = masks_from_zeros({name: folder.weights[name] for name in names})
        masks, where = found or MaskSet({}), "zeros" if found else "none"
    rows = [layer_row(name, folder.weights.get(name), mask_of(masks, name)) for name in names]
    facts = folder.facts or {}
    provenance: Report = {
        key: facts[key] for key in ("step", "data_fingerprint", "metrics", "versions") if key in facts
    }
    architecture = (folder.config.architectures or [type(folder.config).__name__])[0]
    kind = "release" if folder.facts is not None else "model"
    return build_report(folder.source, kind, architecture, where, rows, folder.weights, problems, provenance)


def release_problems(folder: ModelFolder) -> list[str]:
    """Compare a release's files with the checksums it was released with."""
    if folder.facts is None:
        return []
    problems = []
    if [sha256_file(file) for file in folder.weight_files] != [folder.facts.get("weights_sha256")]:
        problems.append("the weights file is not the one that was released (its checksum differs)")
    if folder.masks is None and folder.facts.get("masks_digest"):
        problems.append("the mask file of the release is missing")
    if folder.masks is not None and folder.masks.digest() != folder.facts.get("masks_digest"):
        problems.append("the masks are not the ones that were released (their digest differs)")
    return problems


def mask_of(masks: MaskSet | None, name: str) -> Tensor | None:
    """Return the mask of a weight, None when it has none."""
    return masks[name] if masks is not None and name in masks else None


def layer_row(name: str, weight: Tensor | None, mask: Tensor | None, dense_master: bool = False) -> Report:
    """Count one weight: zeros, what its mask says, non-zeros outside the mask, values that are not finite."""
    reference = weight if weight is not None else mask
    if reference is None:
        raise ValueError(f"{name}: neither weight nor mask")
    row: Report = {
        "name": name,
        "shape": list(reference.shape),
        "weights": reference.numel(),
        "problem": None,
    }
    if weight is None:
        return {**row, "zeros": 0, "sparsity": 0.0, "problem": "has a mask, but the model has no such weight"}
    if mask is not None and mask.shape != weight.shape:
        row["problem"] = f"mask of shape {list(mask.shape)} on a weight of shape {list(weight.shape)}"
        mask = None
    zeros = weight.numel() - int(torch.count_nonzero(weight))
    outside = 0
    if mask is not None:
        row["mask_sparsity"] = 1.0 - int(mask.sum()) / mask.numel()
        if dense_master:
            zeros = mask.numel() - int(mask.sum())
        else:
            outside = int((weight != 0).logical_and_(~mask).sum())
    row.update(zeros=zeros, sparsity=zeros / weight.numel(), nonzero_outside_mask=outside)
    return row


def build_report(
    source: str,
    kind: str,
    architecture: str,
    masks: str,
    rows: list[Report],
    weights: dict[str, Tensor],
    problems: list[str],
    provenance: Report,
) -> Report:
    """Add totals and the verdict to the rows."""
    outside = sum(row.get("nonzero_outside_mask", 0) for row in rows)
    floating = {name: weight for name, weight in weights.items() if weight.is_floating_point()}
    broken = {name: int((~torch.isfinite(weight)).sum()) for name, weight in floating.items()}
    not_finite = sum(broken.values())
    problems = [*problems, *(f"{row['name']}: {row['problem']}" for row in rows if row["problem"])]
    if outside:
        problems.append(f"{outside:,} weights outside the masks are not zero")
    if not_finite:
        first = next(name for name, count in broken.items() if count)
        problems.append(f"{not_finite:,} values are NaN or infinite, the first in {first}")
    covered = {row["name"] for row in rows}
    rest = [weight for name, weight in floating.items() if name not in covered]
    zeros = sum(row["zeros"] for row in rows)
    total_zeros = zeros + sum(weight.numel() - int(torch.count_nonzero(weight)) for weight in rest)
    return {
        "source": source,
        "kind": kind,
        "architecture": architecture,
        "masks": masks,
        "layers": rows,
        "prunable": share(sum(row["weights"] for row in rows), zeros),
        "total": share(sum(weight.numel() for weight in floating.values()), total_zeros),
        "check": {
            "ok": not problems,
            "nonzero_outside_mask": outside,
            "not_finite": not_finite,
            "problems": problems,
        },
        "provenance": provenance,
    }


def share(weights: int, zeros: int) -> Report:
    """Return counts with their ratio."""
    return {"weights": weights, "zeros": zeros, "sparsity": zeros / weights if weights else 0.0}


def render(report: Report, console: Console) -> None:
    """Print a report: one row a prunable weight, totals, the verdict, provenance."""
    title = f"{report['source']}  ({report['kind']}, {report['architecture']}, masks: {report['masks']})"
    table = Table(title=title, title_justify="left")
    table.add_column("weight", no_wrap=True)
    for column in ("shape", "weights", "zeros", "sparsity"):
        table.add_column(column, justify="right")
    for row in report["layers"]:
        shape = " x ".join(str(size) for size in row["shape"])
        table.add_row(
            row["name"], shape, f"{row['weights']:,}", f"{row['zeros']:,}", f"{row['sparsity']:.4%}"
        )
    for name, label in (("prunable", "all prunable weights"), ("total", "whole model")):
        part = report[name]
        table.add_section()
        table.add_row(label, "", f"{part['weights']:,}", f"{part['zeros']:,}", f"{part['sparsity']:.4%}")
    console.print(table)
    for problem in report["check"]["problems"]:
        console.print(f"[red]problem:[/red] {problem}", soft_wrap=True)
    if report["check"]["ok"]:
        console.print(
            "mask check: passed; no weight outside the masks is non-zero, no value is NaN or infinite"
            if report["masks"] != "none"
            else "dense: no masks, and no share of zeros that would be one; no value is NaN or infinite"
        )
    for key, value in report["provenance"].items():
        console.print(f"{key}: {value}", soft_wrap=True, markup=False)
