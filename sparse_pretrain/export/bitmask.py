"""The bitmask format: one bit an element and the values that are not zero, in a safetensors file.

For each prunable matrix `NAME` of n elements, row-major, the file holds

- `NAME.bits`: U8 [ceil(n / 8)]; bit i of byte j says whether element 8 j + i is kept; spare bits are 0.
- `NAME.values`: the kept elements in order; F32, BF16, F16 or I8.
- `NAME.scale`: F32 [rows], only with I8: element = value x scale of its row.

Every other tensor is stored under its own name, as it is or, where asked, as BF16 or F16; `others` = JSON {NAME:
dtype} has the type that such a tensor had. The metadata of the header has that, and `format` =
`sparse-bitmask-1`, `matrices` = JSON {NAME: {shape, dtype}} (dtype: of the dense matrix), `masks` = `file` or
`zeros` (what the bits were read from), `source_metadata` = JSON of the original file's metadata, and `checksum`
(see `stream.write_stream`).
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from safetensors import safe_open
from torch import Tensor

from sparse_pretrain.checkpoint.folder import SPARSE_FROM, one_line
from sparse_pretrain.checkpoint.tensor_file import DTYPES, NAMES, LazyTensor
from sparse_pretrain.errors import UserError
from sparse_pretrain.export.packed import (
    INTEGERS,
    Format,
    Matrices,
    announce,
    describe_matrices,
    read_header,
)
from sparse_pretrain.export.source import Source, open_source
from sparse_pretrain.export.stream import write_stream
from sparse_pretrain.export.target import EXPORT_FILE, copy_companions, staged_folder
from sparse_pretrain.export.values import (
    FLOATS,
    Others,
    Precision,
    check_range,
    dequantise,
    quantise,
    row_scales,
    stored_dtype,
)
from sparse_pretrain.files import write_json
from sparse_pretrain.pruning.bits import pack_bits, unpack_bits
from sparse_pretrain.pruning.masks import MASK_FILE, MaskSet
from sparse_pretrain.telemetry.bar import progress_bar

BITMASK_FILE = "model.bitmask.safetensors"
FORMAT = Format("sparse-bitmask-1", BITMASK_FILE, "bitmask", ("bits", "values", "scale"), optional=1)
Facts = dict[str, Any]


def kept(matrix: Tensor, mask: Tensor | None) -> Tensor:
    """Return which elements are stored, bool: those of the mask, and every one whose bits are not all 0 (-0.0 too)."""
    # As integers: -0.0 equals 0.0 but must come back as itself.
    present = matrix.contiguous().view(INTEGERS[matrix.element_size()]) != 0
    return present if mask is None else present | mask


def export_bitmask(
    source: str | Path,
    out: Path,
    console: Console,
    precision: Precision = "exact",
    overwrite: bool = False,
    others: Others = "exact",
) -> Facts:
    """Write a model folder's weights in the bitmask format, config and tokenizer beside them.

    Two matrices are in memory at a time at most.

    Args:
        source: release, fine-tuned model, any Hugging Face folder or hub name.
        out: the folder to make.
        console: shows progress and warns of a dense model.
        precision: of the non-zero values; `exact`: their own.
        overwrite: replace an earlier export at `out`.
        others: precision of the tensors that are not prunable matrices (embeddings above all).

    Returns:
        JSON-able: sizes in bytes, numbers of weights and of those that are kept.

    Raises:
        UserError: no such model, values that the precision cannot hold, or the disk refused.
    """
    out = out.expanduser()
    with open_source(source) as opened, staged_folder(out, overwrite) as folder:
        plan, facts = plan_file(opened, precision, console, others)
        metadata = {
            "format": FORMAT.name,
            "matrices": describe_matrices(opened.tensors, opened.prunable),
            "masks": "zeros" if opened.masks is None else "file",
            "others": json.dumps(
                {
                    name: NAMES[tensor.dtype]
                    for name, tensor in opened.tensors.items()
                    if name in plan and plan[name].dtype != tensor.dtype
                }
            ),
            "source_metadata": json.dumps({"format": "pt"}),
        }
        with progress_bar(console, transient=True) as bar:
            task = bar.add_task(BITMASK_FILE, total=len(plan), numbers="tensors")
            written = write_stream(
                folder / BITMASK_FILE, announce(plan, lambda: bar.advance(task)), metadata, checksum=True
            )
        copy_companions(opened.folder, folder)
        facts = {
            "format": FORMAT.name,
            "source": str(source),
            "precision": precision,
            "others": others,
            "bytes": written,
            **facts,
        }
        write_json(folder / EXPORT_FILE, facts)
    return facts


def plan_file(
    source: Source, precision: Precision, console: Console, others: Others = "exact"
) -> tuple[dict[str, LazyTensor], Facts]:
    """Count what is kept of every matrix; return what will be written, and the totals."""
    plan = {
        name: converted(name, tensor, others)
        for name, tensor in source.tensors.items()
        if name not in source.prunable
    }
    weights = count = payload = zeros = 0
    with progress_bar(console, transient=True) as bar:
        for name in bar.track(source.prunable, description="counting zeros"):
            tensor = source.tensors[name]
            matrix = tensor.load()
            check_range(name, matrix, precision)
            stored = int(kept(matrix, mask_of(source, name)).sum())
            parts = matrix_parts(source, name, stored, precision)
            for part in parts:
                if part in plan:
                    raise UserError(
                        f"{source.folder}: a tensor named {part} is in the way of the format's names"
                    )
            plan.update(parts)
            weights += matrix.numel()
            count += stored
            zeros += matrix.numel() - int(torch.count_nonzero(matrix))
            payload += sum(part.shape.numel() * part.dtype.itemsize for part in parts.values())
    if weights and zeros / weights < SPARSE_FROM:
        console.print(
            f"[yellow]{source.folder}: dense ({zeros / weights:.2%} zeros); the file will not be smaller[/yellow]",
            soft_wrap=True,
        )
    dense = sum(tensor.shape.numel() * tensor.dtype.itemsize for tensor in source.tensors.values())
    return plan, {
        "prunable_weights": weights,
        "kept_weights": count,
        "prunable_bytes": payload,
        "dense_prunable_bytes": sum(
            source.tensors[name].shape.numel() * source.tensors[name].dtype.itemsize
            for name in source.prunable
        ),
        "dense_bytes": dense,
    }


def converted(name: str, tensor: LazyTensor, others: Others) -> LazyTensor:
    """Return a tensor that is no prunable matrix in the precision asked for; integers stay as they are."""
    if others == "exact" or not tensor.dtype.is_floating_point:
        return tensor

    def load() -> Tensor:
        values = tensor.load()
        check_range(name, values, others)
        return values.to(FLOATS[others])

    return LazyTensor(FLOATS[others], tensor.shape, load)


def mask_of(source: Source, name: str) -> Tensor | None:
    """Return the mask file's mask of a matrix, None when there is none."""
    return None if source.masks is None else source.masks[name]


def matrix_parts(source: Source, name: str, count: int, precision: Precision) -> dict[str, LazyTensor]:
    """Return the tensors that stand for one matrix, each made from it when its turn to be written comes."""
    dense = source.tensors[name]
    dtype = stored_dtype(precision, dense.dtype)

    def bits() -> Tensor:
        return pack_bits(kept(dense.load(), mask_of(source, name)))

    def values() -> Tensor:
        matrix = dense.load()
        converted = quantise(matrix) if precision == "int8" else matrix.to(dtype)
        return select(converted, kept(matrix, mask_of(source, name)))

    parts = {
        f"{name}.bits": LazyTensor(torch.uint8, torch.Size([-(-dense.shape.numel() // 8)]), bits),
        f"{name}.values": LazyTensor(dtype, torch.Size([count]), values),
    }
    if precision == "int8":
        parts[f"{name}.scale"] = LazyTensor(
            torch.float32, torch.Size([dense.shape[0]]), lambda: row_scales(dense.load())
        )
    return parts


def select(matrix: Tensor, present: Tensor) -> Tensor:
    """Return the elements where `present`, in order; moved as integers, for a float's way may change a NaN."""
    integers = matrix.contiguous().view(INTEGERS[matrix.element_size()])
    return integers[present].view(matrix.dtype)


@dataclass(frozen=True)
class BitmaskFile:
    """A bitmask file whose checksum and structure were found good.

    Attributes:
        path: of the file.
        matrices: shape and dense type of each matrix that is stored in parts.
        plain: names of the tensors that are stored whole.
        others: of these, the original type of those that were stored in another.
        masks_from_file: the bits are masks of a mask file, not just where values are.
        source_metadata: of the dense file's header.
    """

    path: Path
    matrices: Matrices
    plain: list[str]
    others: dict[str, torch.dtype]
    masks_from_file: bool
    source_metadata: dict[str, str]

    def tensors(self) -> dict[str, LazyTensor]:
        """Return every tensor of the model, dense, read when its turn comes."""
        with safe_open(self.path, framework="pt") as file:
            found = {}
            for name in self.plain:
                part = file.get_slice(name)
                dtype = self.others.get(name, DTYPES[part.get_dtype()])
                shape = torch.Size(part.get_shape())
                found[name] = LazyTensor(dtype, shape, self._loader(name, self._plain))
        for name, (shape, dtype) in self.matrices.items():
            found[name] = LazyTensor(dtype, shape, self._loader(name, self.dense))
        return found

    def masks(self) -> MaskSet:
        """Return the bits as masks."""
        return MaskSet({name: self._bits(name) for name in self.matrices}, packed=True)

    def save_masks(self, folder: Path) -> None:
        """Write the mask file into a folder, when the bits came from one."""
        if self.masks_from_file:
            self.masks().save(folder / MASK_FILE)

    def dense(self, name: str) -> Tensor:
        """Return one matrix, dense.

        Raises:
            UserError: its parts do not belong together.
        """
        shape, dtype = self.matrices[name]
        present = self._bits(name)
        with safe_open(self.path, framework="pt") as file:
            values = file.get_tensor(f"{name}.values")
            scales = file.get_tensor(f"{name}.scale") if values.dtype == torch.int8 else None
        if int(np.count_nonzero(present.numpy())) != values.numel():
            raise UserError(f"{self.path}: {name} has other numbers of bits and values")
        integers = torch.zeros(shape, dtype=INTEGERS[values.element_size()])
        integers[present] = values.view(integers.dtype)
        matrix = integers.view(values.dtype)
        if scales is None:
            return matrix.to(dtype)
        if scales.numel() != shape[0]:
            raise UserError(f"{self.path}: {name} has {scales.numel()} scales for {shape[0]} rows")
        return dequantise(matrix, scales).to(dtype)

    def _bits(self, name: str) -> Tensor:
        shape, _ = self.matrices[name]
        with safe_open(self.path, framework="pt") as file:
            packed = file.get_tensor(f"{name}.bits")
        if packed.numel() != -(-shape.numel() // 8):
            raise UserError(
                f"{self.path}: {name} has {packed.numel()} bytes of bits for {shape.numel()} weights"
            )
        return unpack_bits(packed, shape.numel()).reshape(shape)

    def _plain(self, name: str) -> Tensor:
        with safe_open(self.path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor.to(self.others.get(name, tensor.dtype))

    @staticmethod
    def _loader(name: str, load: Callable[[str], Tensor]) -> Callable[[], Tensor]:
        return lambda: load(name)


def open_bitmask(path: str | Path) -> BitmaskFile:
    """Open a bitmask file, or the one in a folder, after comparing its checksum.

    Raises:
        UserError: missing, truncated, corrupt, or another kind of file.
    """
    header = read_header(path, FORMAT)
    try:
        others = {name: DTYPES[dtype] for name, dtype in json.loads(header.metadata["others"]).items()}
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{header.path}: broken bitmask file ({one_line(error)})") from None
    from_file = header.metadata.get("masks") == "file"
    return BitmaskFile(header.path, header.matrices, header.plain, others, from_file, header.source_metadata)


def load_bitmask(path: str | Path) -> dict[str, Tensor]:
    """Return the dense state dict of a bitmask folder or file; exact, or for int8 the quantised values.

    `export.load_model` makes the model of it.

    Raises:
        UserError: missing, truncated, corrupt, or another kind of file.
    """
    return {name: tensor.load() for name, tensor in open_bitmask(path).tensors().items()}
