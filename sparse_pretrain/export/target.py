"""The folder an export writes: complete under its name, or not there at all."""

import shutil
from contextlib import AbstractContextManager
from pathlib import Path

from sparse_pretrain.checkpoint import staged
from sparse_pretrain.checkpoint.folder import SPARSITY_FILE, WEIGHT_FILES
from sparse_pretrain.pruning.masks import MASK_FILE

# What every export writes about itself; only a folder that has it is ever overwritten.
EXPORT_FILE = "export.json"
EXPORT = staged.Kind("export", EXPORT_FILE)
# Not for an export: they belong to the weights as released. README and checksums would be wrong beside others.
NOT_COPIED = {*WEIGHT_FILES, MASK_FILE, SPARSITY_FILE, EXPORT_FILE, "README.md"}
NOT_COPIED_SUFFIXES = {".safetensors", ".bin", ".onnx", ".xml", ".pt", ".pth", ".h5", ".msgpack"}


def staged_folder(out: Path, overwrite: bool) -> AbstractContextManager[Path]:
    """Return a context with an empty folder, which on success becomes `out`, in place of an earlier export at most.

    Args:
        out: the folder to make.
        overwrite: replace an earlier export at `out`.

    Raises:
        UserError: on entry, something else is at `out`; or the disk refused.
    """
    return staged.staged_folder(out, EXPORT, overwrite)


def copy_companions(source: Path, folder: Path) -> None:
    """Copy the config, the tokenizer and whatever small files lie beside a model's weights."""
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name not in NOT_COPIED and path.suffix not in NOT_COPIED_SUFFIXES:
            shutil.copyfile(path, folder / path.name)
