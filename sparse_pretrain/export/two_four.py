"""The 2:4 format: of every four inputs two values and their places, in a safetensors file.

For each 2:4 matrix `NAME` [rows, columns] the file holds

- `NAME.values`: [rows, columns / 2] in the matrix's own type: two of every four, in order.
- `NAME.places`: U8 [ceil(rows x columns / 8)]: four bits a group of four, first place + 4 x second place; of two groups
  in a byte the first has the low bits.

Every other tensor is stored under its own name, as it is. The metadata has `format` = `sparse-2of4-1`, and `matrices`,
`source_metadata` and `checksum` as the bitmask format has them. A mask file lies beside it, as it was.
"""

import json
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from safetensors import safe_open
from torch import Tensor

from sparse_pretrain.checkpoint.tensor_file import DTYPES, LazyTensor
from sparse_pretrain.errors import UserError
from sparse_pretrain.export.bitmask import Facts, mask_of
from sparse_pretrain.export.packed import (
    Format,
    Matrices,
    PackedHeader,
    announce,
    describe_matrices,
    read_header,
)
from sparse_pretrain.export.source import Source, open_source
from sparse_pretrain.export.stream import write_stream
from sparse_pretrain.export.target import EXPORT_FILE, copy_companions, staged_folder
from sparse_pretrain.export.two_four_pattern import GROUP, compress, expand, lost_minus_zeros, pattern_problem
from sparse_pretrain.files import write_json
from sparse_pretrain.pruning.masks import MASK_FILE
from sparse_pretrain.telemetry.bar import progress_bar

TWO_FOUR_FILE = "model.2of4.safetensors"
FORMAT = Format("sparse-2of4-1", TWO_FOUR_FILE, "two-four", ("values", "places"))


def export_two_four(
    source: str | Path, out: Path, console: Console, skip_others: bool = False, overwrite: bool = False
) -> Facts:
    """Write a model folder's weights in the 2:4 format, config, tokenizer and masks beside them.

    Args:
        source: release, fine-tuned model, any Hugging Face folder or hub name.
        out: the folder to make.
        console: shows progress, and names what is not 2:4 and what is not exact.
        skip_others: store prunable matrices that are not 2:4 as they are instead of refusing the model.
        overwrite: replace an earlier export at `out`.

    Returns:
        JSON-able: sizes in bytes, numbers of weights, names of matrices that were not packed.

    Raises:
        UserError: no such model, a matrix that is not 2:4 (which row, how many of four), or the disk refused.
    """
    out = out.expanduser()
    with open_source(source) as opened, staged_folder(out, overwrite) as folder:
        names, skipped, minus_zeros = choose(opened, skip_others, console)
        plan = {name: tensor for name, tensor in opened.tensors.items() if name not in names}
        for name in names:
            parts = matrix_parts(opened, name)
            if taken := parts.keys() & opened.tensors.keys():
                raise UserError(
                    f"{opened.folder}: a tensor named {min(taken)} is in the way of the format's names"
                )
            plan |= parts
        metadata = {
            "format": FORMAT.name,
            "matrices": describe_matrices(opened.tensors, names),
            "source_metadata": json.dumps({"format": "pt"}),
        }
        with progress_bar(console, transient=True) as bar:
            task = bar.add_task(TWO_FOUR_FILE, total=len(plan), numbers="tensors")
            written = write_stream(
                folder / TWO_FOUR_FILE, announce(plan, lambda: bar.advance(task)), metadata, checksum=True
            )
        copy_companions(opened.folder, folder)
        if opened.masks is not None:
            shutil.copyfile(opened.folder / MASK_FILE, folder / MASK_FILE)
        facts = {
            "format": FORMAT.name,
            "source": str(source),
            "bytes": written,
            "matrices": len(names),
            "not_packed": skipped,
            "minus_zeros": minus_zeros,
            "prunable_weights": sum(opened.tensors[name].shape.numel() for name in names),
            "prunable_bytes": sum(size(plan[f"{name}.{part}"]) for name in names for part in FORMAT.parts),
            "dense_prunable_bytes": sum(size(opened.tensors[name]) for name in names),
            "dense_bytes": sum(map(size, opened.tensors.values())),
        }
        write_json(folder / EXPORT_FILE, facts)
    return facts


def size(tensor: LazyTensor) -> int:
    """Return a tensor's bytes."""
    return tensor.shape.numel() * tensor.dtype.itemsize


def choose(source: Source, skip_others: bool, console: Console) -> tuple[list[str], dict[str, str], int]:
    """Return the 2:4 matrices, why others are not, and how many -0.0 become 0.0.

    Raises:
        UserError: a matrix is not 2:4 and others are not to be skipped, or none is.
    """
    names, skipped, minus_zeros = [], {}, 0
    with progress_bar(console, transient=True) as bar:
        for name in bar.track(source.prunable, description="looking for 2:4"):
            matrix, mask = source.tensors[name].load(), mask_of(source, name)
            problem = pattern_problem(matrix, mask)
            if problem is None:
                names.append(name)
                minus_zeros += lost_minus_zeros(matrix, mask)
            elif skip_others:
                skipped[name] = problem
            else:
                raise UserError(
                    f"{source.folder}: {name} is not 2:4: {problem}; --skip-others stores such matrices as they are"
                )
    if not names:
        first = next(iter(skipped.items()), None)
        example = f" ({first[0]}: {first[1]})" if first else ""
        raise UserError(f"{source.folder}: none of its {len(skipped)} prunable matrices is 2:4{example}")
    for name, problem in skipped.items():
        console.print(f"[yellow]{name} is stored dense: {problem}[/yellow]", soft_wrap=True)
    if minus_zeros:
        console.print(f"{minus_zeros:,} weights of -0.0 become 0.0, which is equal to it", soft_wrap=True)
    return names, skipped, minus_zeros


def matrix_parts(source: Source, name: str) -> dict[str, LazyTensor]:
    """Return the tensors that stand for one matrix, each made from it when its turn to be written comes."""
    dense = source.tensors[name]

    def part(number: int) -> Tensor:
        return compress(dense.load(), mask_of(source, name))[number]

    rows, columns = dense.shape
    groups = rows * columns // GROUP
    return {
        f"{name}.values": LazyTensor(dense.dtype, torch.Size([rows, columns // 2]), partial(part, 0)),
        f"{name}.places": LazyTensor(torch.uint8, torch.Size([-(-groups // 2)]), partial(part, 1)),
    }


@dataclass(frozen=True)
class TwoFourFile:
    """A 2:4 file whose checksum and structure were found good."""

    header: PackedHeader

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self.header.path

    @property
    def source_metadata(self) -> dict[str, str]:
        """The dense file's metadata."""
        return self.header.source_metadata

    @property
    def matrices(self) -> Matrices:
        """Shape and type of each matrix that is stored in parts."""
        return self.header.matrices

    def tensors(self) -> dict[str, LazyTensor]:
        """Return every tensor of the model, dense, read when its turn comes."""
        found = {}
        with safe_open(self.path, framework="pt") as file:
            for name in self.header.plain:
                part = file.get_slice(name)
                dtype, shape = DTYPES[part.get_dtype()], torch.Size(part.get_shape())
                found[name] = LazyTensor(dtype, shape, partial(self.stored, name))
        for name, (shape, dtype) in self.matrices.items():
            found[name] = LazyTensor(dtype, shape, partial(self.dense, name))
        return found

    def stored(self, name: str) -> Tensor:
        """Return one tensor of the file as it is."""
        with safe_open(self.path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor

    def dense(self, name: str) -> Tensor:
        """Return one matrix, dense.

        Raises:
            UserError: its parts do not belong together.
        """
        shape, dtype = self.matrices[name]
        values, packed = (self.stored(f"{name}.{part}") for part in FORMAT.parts)
        try:
            if values.dtype != dtype or packed.dtype != torch.uint8:
                raise ValueError(f"values are {values.dtype}, places {packed.dtype}")
            return expand(values, packed, shape)
        except ValueError as error:
            raise UserError(f"{self.path}: {name} is broken: {error}") from None

    def save_masks(self, folder: Path) -> None:
        """Copy the mask file beside it into a folder, when there is one."""
        if (file := self.path.parent / MASK_FILE).is_file():
            shutil.copyfile(file, folder / MASK_FILE)


def open_two_four(path: str | Path) -> TwoFourFile:
    """Open a 2:4 file, or the one in a folder, after comparing its checksum.

    Raises:
        UserError: missing, truncated, corrupt, or another kind of file.
    """
    return TwoFourFile(read_header(path, FORMAT))


def load_two_four(path: str | Path) -> dict[str, Tensor]:
    """Return the dense state dict of a 2:4 folder or file.

    Raises:
        UserError: missing, truncated, corrupt, or another kind of file.
    """
    return {name: tensor.load() for name, tensor in open_two_four(path).tensors().items()}
