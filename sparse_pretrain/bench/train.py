"""`bench train`: the reference's training step and ours, side by side on the same real text."""

import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoConfig, AutoModelForPreTraining

from data_prep.prepare import prepare
from data_prep.recipe import PrepareRecipe
from sparse_pretrain.bench.data import take, write_text
from sparse_pretrain.bench.run import run_bench
from sparse_pretrain.bench.train_settings import MODES, SHAPES, Case, Measurement, Mode
from sparse_pretrain.checkpoint.quiet import quiet_libraries
from sparse_pretrain.data.manifest import read_manifest
from sparse_pretrain.telemetry.bar import progress_bar

SIDES = ("reference", "ours")


def measure(wanted: Sequence[Case], tokenizer: str, megabytes: float, console: Console) -> dict[str, Any]:
    """Measure every case: each mode by the reference's way and by ours, one right after the other.

    Args:
        wanted: the cases.
        tokenizer: folder or name.
        megabytes: of text to train on.
        console: for the user.

    Returns:
        The keys that `sparse-pretrain bench train` explains, for every case.
    """
    with tempfile.TemporaryDirectory(prefix="bench-train-") as name, progress_bar(console) as bar:
        place = Path(name)
        task = bar.add_task("text", total=len(wanted) * len(MODES) * len(SIDES), numbers="")
        write_text(place / "all.jsonl")
        text = take(place / "all.jsonl", place / "text.jsonl", megabytes)
        results = []
        for case in wanted:
            folders = prepared(text, tokenizer, case.length, place)
            start = random_model(case, read_manifest(Path(folders["packed"])).vocabulary_size, place)
            modes: dict[Mode, dict[str, Any]] = {}
            for mode in MODES:
                modes[mode] = {}
                for side in SIDES:
                    bar.update(task, description=f"{case.model} {case.length} {mode}: {side}")
                    measurement = Measurement.model_validate(
                        {"case": case, "side": side, "mode": mode, "start": str(start), **folders}
                    )
                    modes[mode][side] = run_bench("train", measurement, case.ranks, place)
                    bar.update(task, advance=1)
            results.append(compared(case, modes))
    devices = {numbers["ours"]["device"] for case in results for numbers in case["modes"].values()}
    return {"cases": results, "device": ", ".join(sorted(devices)), "torch": torch.__version__}


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


def prepared(text: Path, tokenizer: str, length: int, place: Path) -> dict[str, str]:
    """Prepare the text once for each side: padded pairs for the reference, packed rows for us."""
    folders = {}
    for form in ("pairs", "packed"):
        folder = place / f"{form}-{length}"
        folders[form] = str(folder)
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
