"""What the packed formats share: matrices in parts, a checksum over all, the way back to a plain folder."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from safetensors import SafetensorError, safe_open

from sparse_pretrain.checkpoint.folder import one_line
from sparse_pretrain.checkpoint.tensor_file import DTYPES, NAMES, LazyTensor
from sparse_pretrain.errors import UserError
from sparse_pretrain.export.stream import checksum_problem, write_stream
from sparse_pretrain.export.target import EXPORT_FILE, copy_companions, staged_folder
from sparse_pretrain.files import write_json
from sparse_pretrain.telemetry.bar import progress_bar

WEIGHTS = "model.safetensors"
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
Matrices = dict[str, tuple[torch.Size, torch.dtype]]


@dataclass(frozen=True)
class Format:
    """One packed format.

    Attributes:
        name: in the file's metadata, with its version.
        file: its name in an exported folder.
        command: of `sparse-pretrain export` that writes it; also what people call it.
        parts: what follows a matrix's name in the names of its tensors; the optional ones after the others.
        optional: how many of them a matrix may lack.
    """

    name: str
    file: str
    command: str
    parts: tuple[str, ...]
    optional: int = 0


@dataclass(frozen=True)
class PackedHeader:
    """The header of a packed file whose checksum was found good.

    Attributes:
        path: of the file.
        metadata: strings of the header.
        matrices: dense shape and type of each matrix that is stored in parts.
        plain: names of the tensors that are stored whole.
        source_metadata: of the dense file's header.
    """

    path: Path
    metadata: dict[str, str]
    matrices: Matrices
    plain: list[str]
    source_metadata: dict[str, str]


class PackedFile(Protocol):
    """An opened packed file of any format."""

    @property
    def path(self) -> Path:
        """Where it lies."""

    @property
    def source_metadata(self) -> dict[str, str]:
        """The dense file's metadata."""

    def tensors(self) -> dict[str, LazyTensor]:
        """Return every tensor of the model, dense."""

    def save_masks(self, folder: Path) -> None:
        """Write the model's mask file into a folder; nothing where it had none."""


def describe_matrices(tensors: Mapping[str, LazyTensor], names: Iterable[str]) -> str:
    """Return the metadata's entry on matrices, JSON."""
    return json.dumps(
        {name: {"shape": list(tensors[name].shape), "dtype": NAMES[tensors[name].dtype]} for name in names}
    )


def read_header(path: str | Path, form: Format) -> PackedHeader:
    """Open a packed file, or the one in a folder, after comparing its checksum.

    Raises:
        UserError: missing, truncated, corrupt, or of another format.
    """
    file = Path(path).expanduser()
    file = file / form.file if file.is_dir() else file
    try:
        problem = checksum_problem(file)
        if problem is not None:
            raise UserError(f"{file}: {problem}")
        with safe_open(file, framework="pt") as opened:
            metadata = dict(opened.metadata() or {})
            names = set(opened.keys())
        if metadata.get("format") != form.name:
            raise UserError(f"{file}: not a {form.command} file (no {form.name} in its metadata)")
        matrices = {
            name: (torch.Size(entry["shape"]), DTYPES[entry["dtype"]])
            for name, entry in json.loads(metadata["matrices"]).items()
        }
        source_metadata = dict(json.loads(metadata["source_metadata"]))
    except FileNotFoundError:
        raise UserError(
            f"{file}: no such {form.command} file (`sparse-pretrain export {form.command}` makes one)"
        ) from None
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: broken {form.command} file ({one_line(error)})") from None
    needed = form.parts[: len(form.parts) - form.optional]
    for name, (shape, _) in matrices.items():
        if not {f"{name}.{part}" for part in needed} <= names or shape.numel() < 0:
            raise UserError(f"{file}: {name} is not whole")
    stored = {f"{name}.{part}" for name in matrices for part in form.parts}
    return PackedHeader(file, metadata, matrices, sorted(names - stored), source_metadata)


def write_plain_folder(
    opened: PackedFile, source: str, out: Path, console: Console, overwrite: bool
) -> dict[str, Any]:
    """Write a packed file as a plain Hugging Face folder with dense weights, and masks where it had them.

    Raises:
        UserError: parts do not belong together; something else is at `out`; the disk refused.
    """
    out = out.expanduser()
    with staged_folder(out, overwrite) as folder:
        tensors = opened.tensors()
        with progress_bar(console, transient=True) as bar:
            task = bar.add_task(WEIGHTS, total=len(tensors), numbers="tensors")
            written = write_stream(
                folder / WEIGHTS,
                announce(tensors, lambda: bar.advance(task)),
                opened.source_metadata,
                checksum=False,
            )
        opened.save_masks(folder)
        copy_companions(opened.path.parent, folder)
        facts = {"format": "dense", "source": source, "bytes": written, "tensors": len(tensors)}
        write_json(folder / EXPORT_FILE, facts)
    return facts


def announce(tensors: dict[str, LazyTensor], advance: Callable[[], Any]) -> dict[str, LazyTensor]:
    """Return the tensors with a call of `advance` at each load."""

    def tell(tensor: LazyTensor) -> Callable[[], torch.Tensor]:
        def load() -> torch.Tensor:
            advance()
            return tensor.load()

        return load

    return {name: LazyTensor(tensor.dtype, tensor.shape, tell(tensor)) for name, tensor in tensors.items()}
