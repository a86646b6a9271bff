"""`sparse-pretrain teacher-logits`: run the teacher over a run's whole training stream once, to disk.

Disk: (4 k + 4) bytes a position (vocabulary up to 65,536), 260 at k = 64. One step of the paper's recipe
(256 rows of 512 tokens) is 34 MB with `positions: all`, 5 MB with `positions: masked`; 100,000 steps are
3.4 TB and 0.5 TB. It pays where one teacher serves several runs, or where it does not fit beside the student.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from sparse_pretrain.checkpoint.quiet import quiet_libraries
from sparse_pretrain.config.distillation import DistillationSection, check_precomputable
from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.data.batch import Batch
from sparse_pretrain.data.loader import Slice, TrainingLoader
from sparse_pretrain.data.masking import IGNORED
from sparse_pretrain.distillation.row_hash import row_hashes
from sparse_pretrain.distillation.stored_logits import (
    MANIFEST_FILE,
    LogitsManifest,
    bytes_per_position,
    id_type,
    read_logits_manifest,
    shard_path,
    write_shard,
)
from sparse_pretrain.distillation.teacher import ReplicatedTeacher
from sparse_pretrain.distillation.top_logits import TopLogits, top_logits
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import write_json
from sparse_pretrain.models.loading import build_model
from sparse_pretrain.models.pretraining import PretrainingModel
from sparse_pretrain.telemetry.bar import progress_bar
from sparse_pretrain.training.inputs import Inputs, open_inputs
from sparse_pretrain.training.precision import DTYPES, Resolved, resolve_precision
from sparse_pretrain.training.provenance import versions
from sparse_pretrain.training.teacher_inputs import source_identity, teacher_section
from sparse_pretrain.training.world import rank_from_environment

# A kill loses at most one shard; a very long run gets larger ones instead of tens of thousands of files.
SHARD_BYTES = 2**26
MOST_SHARDS = 4096
# What may differ between the manifest of a folder and that of the run that continues it.
FREE_KEYS = {"steps_per_shard", "versions", "teacher"}


@dataclass(frozen=True)
class Job:
    """What is written where, by which of several processes that share the shards among themselves."""

    recipe: TrainRecipe
    section: DistillationSection
    inputs: Inputs
    out: Path
    precision: Resolved
    rank: int
    ranks: int
    device: torch.device


def write_teacher_logits(recipe: TrainRecipe, out: Path, top_k: int, console: Console) -> dict[str, Any]:
    """Write the teacher's top logits for every position that the recipe's loss needs, all steps.

    Kill it at any time: every finished shard is whole, and the same command goes on with the next one.
    Under torchrun process r of n takes the shards r, r + n, …; they need not meet.

    Args:
        recipe: the one to train with; its `distillation.precomputed` is not looked at.
        out: the folder, empty or begun by the same command.
        top_k: tokens a position.
        console: told of size and progress.

    Returns:
        JSON-able: `folder`, `steps`, `samples`, `shards`, `bytes` (on disk now).

    Raises:
        UserError: the recipe's distillation cannot be stored, the folder holds something else, or the
            disk is too small.
    """
    job = plan_job(recipe, out)
    out = job.out
    manifest = begin(job, top_k)
    missing = manifest.missing(out)
    # By number, not by place among the missing: processes look at different moments.
    mine = [number for number in missing if number % job.ranks == job.rank]
    if job.rank:
        console = Console(quiet=True)
    estimate = estimated_bytes(job, manifest)
    console.print(
        f"teacher logits: {manifest.steps:,} steps, about {readable(estimate)} on disk ({manifest.shards} "
        f"shards, {manifest.shards - len(missing)} already there)",
        soft_wrap=True,
    )
    check_space(out, estimate * len(missing) // manifest.shards)
    if not (out / MANIFEST_FILE).is_file():
        write_json(out / MANIFEST_FILE, manifest.model_dump(mode="json"))
    if mine:
        write_shards(job, manifest, mine, console)
    size = sum(path.stat().st_size for path in out.glob("logits-*.safetensors"))
    console.print(
        f"teacher logits: {manifest.shards - len(manifest.missing(out))} of {manifest.shards} shards, "
        f"{readable(size)}, in {out}; train with distillation.precomputed={out}",
        soft_wrap=True,
    )
    return {
        "folder": str(out),
        "steps": manifest.steps,
        "samples": manifest.samples,
        "shards": manifest.shards,
        "bytes": size,
    }


def plan_job(recipe: TrainRecipe, out: Path) -> Job:
    """Check the recipe and open its inputs.

    Raises:
        UserError: it has no teacher, or one whose logits alone are not enough.
    """
    if recipe.distillation is None:
        raise UserError("distillation: this recipe has no teacher whose logits could be stored")
    section = recipe.distillation.model_copy(update={"precomputed": None})
    try:
        check_precomputable(section)
    except ValueError as error:
        raise UserError(f"distillation: {error}") from None
    recipe = recipe.model_copy(update={"distillation": section})
    rank, ranks, local_rank = rank_from_environment()
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", local_rank % torch.cuda.device_count()) if on_gpu else torch.device("cpu")
    precision = resolve_precision(recipe.precision)
    return Job(recipe, section, open_inputs(recipe), out.expanduser(), precision, rank, ranks, device)


def begin(job: Job, top_k: int) -> LogitsManifest:
    """Return the manifest of the folder, that of an earlier start where there was one.

    Raises:
        UserError: the folder holds something else, or `top_k` is larger than the vocabulary.
    """
    vocabulary = job.inputs.teacher_configs[0].vocab_size
    if top_k > vocabulary:
        raise UserError(f"--top-k = {top_k}: the teacher's vocabulary has {vocabulary} tokens")
    recipe, section, source = job.recipe, job.section, job.section.teachers[0]
    manifest = LogitsManifest(
        data_fingerprint=job.inputs.train.manifest.fingerprint,
        seed=recipe.seed,
        masking=recipe.masking.model_dump(mode="json"),
        positions=section.positions,
        temperature=section.temperature,
        teacher=source,
        teacher_identity=source_identity(source),
        vocabulary_size=vocabulary,
        top_k=top_k,
        global_size=recipe.batch.global_size,
        steps=recipe.steps,
        steps_per_shard=recipe.steps,
        precision=job.precision,
        versions=versions(),
    )
    whole = estimated_bytes(job, manifest)
    shard = max(SHARD_BYTES, whole // MOST_SHARDS)
    steps = min(manifest.steps, max(1, shard * manifest.steps // whole))
    manifest = manifest.model_copy(update={"steps_per_shard": steps})
    # Looked at first: another process may be writing its manifest, and then its shards.
    occupied = job.out.is_file() or (job.out.is_dir() and any(visible(job.out)))
    if not (job.out / MANIFEST_FILE).is_file():
        if occupied:
            raise UserError(f"{job.out}: not empty, and holds no stored logits; give another folder")
        return manifest
    before = read_logits_manifest(job.out)
    old, new = before.model_dump(exclude=FREE_KEYS), manifest.model_dump(exclude=FREE_KEYS)
    for key, value in new.items():
        if old[key] != value:
            raise UserError(
                f"{job.out}: was begun with {key} = {old[key]}, now it is {value}; give another folder"
            )
    return before


def visible(folder: Path) -> list[Path]:
    """Return what lies in a folder, without the temporary files of a process that was killed."""
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def estimated_bytes(job: Job, manifest: LogitsManifest) -> int:
    """Return about how much disk all shards take, from the data's mean row length."""
    counts = job.inputs.train.manifest.splits["train"]
    positions = counts.tokens / counts.rows
    if manifest.positions == "masked":
        positions *= job.recipe.masking.probability
    per_position = bytes_per_position(manifest.top_k, manifest.vocabulary_size)
    return round(manifest.samples * (positions * per_position + 8))


def check_space(folder: Path, needed: int) -> None:
    """Refuse to begin what will not fit on the disk."""
    place = folder
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            f"{folder}: needs about {readable(needed)}, {readable(free)} are free; a smaller --top-k or "
            "distillation.positions=masked needs less"
        )


def readable(size: float) -> str:
    """Return a number of bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def write_shards(job: Job, manifest: LogitsManifest, numbers: list[int], console: Console) -> None:
    """Write the given shards, one after the other."""
    recipe, inputs = job.recipe, job.inputs
    section = teacher_section(job.section.teachers[0], recipe)
    with quiet_libraries():
        model = build_model(inputs.teacher_configs[0], section, next_sentence=False)
    teacher = ReplicatedTeacher(PretrainingModel(model), job.device, DTYPES[job.precision])
    part = Slice(recipe.batch.global_size, recipe.batch.micro_size, 0, 1)
    everywhere = job.section.needs_all_logits
    held = torch.uint16 if id_type(manifest.vocabulary_size) == np.uint16 else torch.int32
    loader = TrainingLoader(inputs.train, part, recipe.masking, inputs.table, recipe.seed, everywhere)
    remove_leftovers(job.out, numbers)
    ranges = {number: steps_of(manifest, number) for number in numbers}
    with progress_bar(console) as bar:
        task = bar.add_task("teacher logits", total=sum(map(len, ranges.values())), numbers="")
        for number, steps in ranges.items():
            counts: list[int] = []
            hashes: list[NDArray[np.uint64]] = []
            parts: list[TopLogits] = []
            loader.samples_seen = steps.start * manifest.global_size
            for _ in steps:
                for batch in (batch.to(job.device) for batch in loader.next_step()):
                    logits, sizes = needed_logits(teacher(batch).tokens, batch, everywhere)
                    answer = top_logits(logits, manifest.top_k, manifest.temperature)
                    # A shard is held in memory until it is whole, so ids in the type of the file.
                    answer = answer._replace(ids=answer.ids.to(held))
                    parts.append(TopLogits(*(column.cpu() for column in answer)))
                    counts.extend(sizes)
                    hashes.append(row_hashes(batch))
                bar.advance(task)
            path = shard_path(job.out, number)
            write_shard(path, counts, hashes, parts, manifest)
            bar.update(task, numbers=f"shard {number + 1}/{manifest.shards}")
            if not console.is_terminal:
                console.print(
                    f"teacher logits: {path.name}, steps {steps.start} to {steps.stop}", soft_wrap=True
                )


def steps_of(manifest: LogitsManifest, number: int) -> range:
    """Return the steps that a shard covers."""
    first = number * manifest.steps_per_shard
    return range(first, min(first + manifest.steps_per_shard, manifest.steps))


def remove_leftovers(folder: Path, numbers: list[int]) -> None:
    """Delete the half-written files of these shards that a killed process left behind."""
    for number in numbers:
        for path in folder.glob(f".{shard_path(folder, number).name}.*.tmp"):
            path.unlink(missing_ok=True)


def needed_logits(logits: Tensor, batch: Batch, everywhere: bool) -> tuple[Tensor, list[int]]:
    """Return the logits that the loss needs, and how many of them each row of the batch has.

    Args:
        logits: [positions, vocabulary], at the batch's positions.
        batch: the batch.
        everywhere: all non-padding positions are needed; else the predicted ones. A batch where nothing
            is predicted has one position all the same, which nobody needs.
    """
    positions = batch.positions
    if not everywhere:
        wanted = batch.labels != IGNORED
        logits, positions = logits[wanted], positions[wanted]
    rows, length = batch.input_ids.shape
    return logits, torch.bincount(positions // length, minlength=rows).tolist()
