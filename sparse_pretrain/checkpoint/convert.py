"""`checkpoint convert`: the weights of a checkpoint for programs that know nothing of it; no DeepSpeed, no GPU."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from torch import Tensor

from sparse_pretrain.checkpoint.integrity import read_manifest
from sparse_pretrain.checkpoint.layout import STATE
from sparse_pretrain.checkpoint.quiet import quiet_libraries
from sparse_pretrain.checkpoint.release import build_model, copy_tokenizer, verify_release
from sparse_pretrain.checkpoint.shards import MASTER, FragmentReader
from sparse_pretrain.checkpoint.staged import disk_errors, replace_folder
from sparse_pretrain.checkpoint.store import open_weights, read_checkpoint, read_masks
from sparse_pretrain.checkpoint.tensor_file import LazyTensor, write_tensors
from sparse_pretrain.checkpoint.verify import problems_with_files
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import atomic_path, fsync_file, fsync_folder, read_json
from sparse_pretrain.models.projections import is_projection
from sparse_pretrain.pruning.masks import MASK_FILE, MaskSet
from sparse_pretrain.telemetry.bar import progress_bar

Form = Literal["folder", "safetensors"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def check_target(out: Path, form: Form, overwrite: bool) -> None:
    """Refuse to write where something is, or, when asked to overwrite, where something else is.

    Raises:
        UserError: with what would help.
    """
    if form == "safetensors" and out.is_dir():
        raise UserError(f"{out}: is a folder; give the name of a file, such as {out / 'model.safetensors'}")
    if form == "folder" and out.is_file():
        raise UserError(f"{out}: is a file; give the name of a folder")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise UserError(f"{out}: exists; give another name, or --overwrite")
    if out.is_dir() and not (out / "config.json").is_file():
        raise UserError(f"{out}: holds no model (config.json is missing), so it is not overwritten")


def convert_to_file(
    checkpoint: Path, out: Path, console: Console, dtype: torch.dtype = torch.float32, dense: bool = False
) -> int:
    """Write all weights under their Hugging Face names to one safetensors file, one parameter at a time.

    Distillation's projections are left out; a tied weight appears once, under its first name.

    Args:
        checkpoint: whole; its checksums are compared first.
        out: the file; it is there when it is complete, not before.
        console: shows how far it is, when it is a terminal.
        dtype: of the file.
        dense: leave pruned weights as their masters are, instead of exact zeros.

    Returns:
        Bytes written.

    Raises:
        UserError: the checkpoint is not whole, or the disk refused.
    """
    check_whole(checkpoint, console)
    reader = open_weights(checkpoint)
    masks = None if dense else read_masks(checkpoint)
    masks = None if masks is None else masks.packed_copy()
    names = [name for name in reader.shapes if not is_projection(name)]
    metadata = {
        "format": "pt",
        "step": str(read_json(checkpoint / STATE)["step"]),
        "masks": "none" if masks is None else "applied",
    }
    with progress_bar(console, transient=True) as bar, disk_errors(out):
        task = bar.add_task(out.name, total=len(names), numbers="parameters")
        tensors = {
            name: LazyTensor(
                dtype,
                reader.shapes[name],
                loader(reader, name, masks, dtype, lambda: bar.advance(task)),
            )
            for name in names
        }
        with atomic_path(out) as temporary:
            return write_tensors(temporary, tensors, metadata).bytes


def loader(
    reader: FragmentReader, name: str, masks: MaskSet | None, dtype: torch.dtype, done: Callable[[], None]
) -> Callable[[], Tensor]:
    """Return a function that reads one parameter, prunes it and rounds it."""

    def load() -> Tensor:
        weight = reader.whole(MASTER, name)
        if masks is not None and name in masks:
            masks.multiply(name, weight)
        done()
        return weight.to(dtype)

    return load


def convert_to_folder(
    checkpoint: Path, out: Path, dtype: torch.dtype = torch.float32, dense: bool = False
) -> int:
    """Write a Hugging Face folder that plain `from_pretrained` loads; the model is in memory meanwhile.

    Unlike a release it has no model card and no facts of the run; the masks lie beside the weights unless
    `dense`. It is written and loaded once beside `out`, then renamed.

    Args:
        checkpoint: whole; its checksums are compared first.
        out: the folder.
        dtype: of the weights.
        dense: leave pruned weights as their masters are, instead of exact zeros.

    Returns:
        Bytes written.

    Raises:
        UserError: the checkpoint is not whole, its weights do not belong to its config, or the disk refused.
        ReleaseError: the written folder does not load.
    """
    contents = read_checkpoint(checkpoint)
    if dense:
        contents = replace(contents, masks=None)
    model = build_model(contents).to(dtype)  # type: ignore[arg-type]
    staging = out.with_name(f".{out.name}.partial")
    with disk_errors(out):
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        try:
            with quiet_libraries():
                model.save_pretrained(staging, max_shard_size="1TB")
            copy_tokenizer(contents.model_folder, staging)
            if contents.masks is not None:
                contents.masks.save(staging / MASK_FILE)
            verify_release(staging)
            for path in staging.iterdir():
                fsync_file(path)
            fsync_folder(staging)
            written = sum(path.stat().st_size for path in staging.iterdir())
            replace_folder(staging, out)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return written


def check_whole(checkpoint: Path, console: Console) -> None:
    """Compare a checkpoint's checksums.

    Raises:
        UserError: one differs.
    """
    try:
        manifest = read_manifest(checkpoint)
    except ValueError as error:
        raise UserError(f"{checkpoint}: {error}") from None
    for finding in problems_with_files(checkpoint, manifest, console):
        raise UserError(f"{checkpoint}: {finding.problem}")
