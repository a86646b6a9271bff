"""Copies of a rank's shards in host memory, made while the next forward and backward pass runs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sparse_pretrain.checkpoint.shards import Piece


class HostCopies:
    """Buffers that every save uses again: memory is taken once (and, for a GPU, pinned once)."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[tuple[str, str], Tensor] = {}
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._written = torch.cuda.Event() if device.type == "cuda" else None

    def note_written(self) -> None:
        """Call on the training thread when everything that will be copied has been submitted to the GPU."""
        if self._written is not None:
            self._written.record()

    def copy(self, pieces: Sequence[Piece]) -> list[Piece]:
        """Return the pieces with their values in host memory; the buffers belong to it until the next call."""
        with torch.no_grad(), torch.cuda.stream(self._stream):
            if self._stream is not None and self._written is not None:
                self._stream.wait_event(self._written)
            copies = [piece._replace(values=self._copy(piece)) for piece in pieces]
            if self._stream is not None:
                self._stream.synchronize()
        return copies

    def _copy(self, piece: Piece) -> Tensor:
        key = (piece.kind, piece.name)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.shape != piece.values.shape or buffer.dtype != piece.values.dtype:
            pinned = self._device.type == "cuda"
            buffer = torch.empty(piece.values.shape, dtype=piece.values.dtype, pin_memory=pinned)
            self._buffers[key] = buffer
        return buffer.copy_(piece.values, non_blocking=True)
