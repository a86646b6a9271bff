"""The folder an export writes: complete under its name, or not there at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparse_pretrain.checkpoint.convert import disk_errors
from sparse_pretrain.checkpoint.folder import SPARSITY_FILE, WEIGHT_FILES
from sparse_pretrain.checkpoint.release import replace_folder
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import fsync_file, fsync_folder
from sparse_pretrain.pruning.masks import MASK_FILE

# What every export writes about itself; only a folder that has it is ever overwritten.
EXPORT_FILE = "export.json"
# Not for an export: they belong to the weights as released. README and checksums would be wrong beside others.
NOT_COPIED = {*WEIGHT_FILES, MASK_FILE, SPARSITY_FILE, EXPORT_FILE, "README.md"}
NOT_COPIED_SUFFIXES = {".safetensors", ".bin", ".onnx", ".xml", ".pt", ".pth", ".h5", ".msgpack"}


@contextmanager
def staged_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """Yield an empty folder beside `out`; on success force it to the disk and give it the name `out`.

    Args:
        out: the folder to make.
        overwrite: replace an earlier export at `out`.

    Raises:
        UserError: something else is at `out`, or the disk refused.
    """
    check_target(out, overwrite)
    staging = out.with_name(f".{out.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with disk_errors(out):
            staging.mkdir(parents=True)
            yield staging
            for path in staging.iterdir():
                fsync_file(path)
            fsync_folder(staging)
            replace_folder(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_target(out: Path, overwrite: bool) -> None:
    """Refuse to write over anything but, when asked to, an earlier export.

    Raises:
        UserError: with what would help.
    """
    if out.is_file():
        raise UserError(f"{out}: is a file; give the name of a folder")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not overwrite:
        raise UserError(f"{out}: exists and is not empty; give another folder, or --overwrite")
    if not (out / EXPORT_FILE).is_file():
        raise UserError(f"{out}: holds no export ({EXPORT_FILE} is missing), so it is not overwritten")


def copy_companions(source: Path, folder: Path) -> None:
    """Copy the config, the tokenizer and whatever small files lie beside a model's weights."""
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name not in NOT_COPIED and path.suffix not in NOT_COPIED_SUFFIXES:
            shutil.copyfile(path, folder / path.name)
