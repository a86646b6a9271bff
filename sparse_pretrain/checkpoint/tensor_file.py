"""A safetensors file written in one pass: checksummed while it is written, forced to the disk, never in memory twice.

The library's own writer would have to read a file of gigabytes again for its checksum, and wants all tensors at
once. The format is a length (8 bytes, little-endian), a JSON header of that length, and the tensors' bytes back
to back.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparse_pretrain.checkpoint.checksum import Checksum
from sparse_pretrain.checkpoint.integrity import FileFacts

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
ALIGNMENT = 8
# Small enough to stay in a core's cache between its checksum and its write.
CHUNK = 2**20


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is made when its turn to be written comes, and let go afterwards.

    Attributes:
        dtype: of what `load` will return.
        shape: of what `load` will return.
        load: returns it, on the CPU; called once.
    """

    dtype: torch.dtype
    shape: torch.Size
    load: Callable[[], Tensor]


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor | LazyTensor], metadata: Mapping[str, str]
) -> FileFacts:
    """Write a new safetensors file and force it to the disk.

    Args:
        path: where.
        tensors: contiguous, on the CPU; not copied. Of lazy ones one is in memory at a time.
        metadata: strings for the header.

    Returns:
        Its size and checksum.

    Raises:
        OSError: the disk refused; what was written so far stays.
        ValueError: a lazy tensor is not what it was announced to be; what was written so far stays.
    """
    # Alignment: the wide types first, whatever their order was.
    ordered = dict(sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize))
    checksum = Checksum()
    size = 0
    with path.open("wb", buffering=0) as file:
        for chunk in chunks(header(ordered, metadata), ordered):
            size += len(chunk)
            checksum.update(chunk)
            write_all(file.fileno(), chunk)
            # Else the loop would hold on to one tensor while the next one is loaded.
            del chunk
        os.fsync(file.fileno())
    return FileFacts(size, checksum.hexdigest())


def header(
    tensors: Mapping[str, Tensor | LazyTensor], metadata: Mapping[str, str] | None, ascii_only: bool = True
) -> bytes:
    """Return a safetensors header: length, compact JSON, spaces so that the tensors are aligned.

    Args:
        tensors: in the file's order.
        metadata: strings; None: the header has no such entry.
        ascii_only: write other letters as escapes.
    """
    entries: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.shape.numel() * tensor.dtype.itemsize
        entries[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=ascii_only).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def chunks(start: bytes, tensors: Mapping[str, Tensor | LazyTensor]) -> Iterator[memoryview]:
    """Yield the file's bytes, at most `CHUNK` at a time; tensors are not copied.

    Raises:
        ValueError: a lazy tensor has another type or shape than the header says.
    """
    yield memoryview(start)
    for name, tensor in tensors.items():
        yield from chunks_of(tensor if isinstance(tensor, Tensor) else loaded(name, tensor))


def loaded(name: str, lazy: LazyTensor) -> Tensor:
    """Return a lazy tensor's values.

    Raises:
        ValueError: they have another type or shape than announced.
    """
    tensor = lazy.load()
    if (tensor.dtype, tensor.shape) != (lazy.dtype, lazy.shape):
        raise ValueError(
            f"{name}: {tensor.dtype} of shape {list(tensor.shape)}, announced as {lazy.dtype} of shape "
            f"{list(lazy.shape)}"
        )
    return tensor.contiguous()


def chunks_of(tensor: Tensor) -> Iterator[memoryview]:
    """Yield a contiguous tensor's bytes, at most `CHUNK` at a time."""
    if not tensor.numel():
        return
    bytes_of_tensor: Any = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    whole = memoryview(bytes_of_tensor)
    for first in range(0, len(whole), CHUNK):
        yield whole[first : first + CHUNK]


def write_all(descriptor: int, chunk: memoryview) -> None:
    """Write all of a chunk; the system may take less at a time."""
    while chunk:
        chunk = chunk[os.write(descriptor, chunk) :]
