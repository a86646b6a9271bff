"""Teacher logits on disk: what the teacher says of the training stream, known before training starts.

The order of samples and their masking are functions of (data fingerprint, seed, epoch), so the k highest
logits of every position that the loss needs can be written once and read by any number of runs and ranks::

    teacher-logits.json          what they belong to (`LogitsManifest`)
    logits-00000.safetensors …   `samples_per_shard` samples of the stream each

Tensors of a shard, n samples with N positions in all, in the stream's order:

    offsets    int64 [n + 1], where each sample's positions begin
    ids        uint16 (vocabulary <= 65,536) or int32 [N, k], token ids, likeliest first
    logits     fp16 [N, k], minus the position's highest logit
    rows       uint64 [n], hash of each sample's masked tokens (see `row_hash`)
    log_rest   fp32 [N], log of the probability of all other tokens at the manifest's temperature

A position costs 4 k + 4 bytes (6 k + 4 with int32), 260 bytes at k = 64.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sparse_pretrain.config.distillation import Positions
from sparse_pretrain.data.batch import Batch
from sparse_pretrain.distillation.row_hash import row_hashes
from sparse_pretrain.distillation.top_logits import TopLogits
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import atomic_path, read_json

MANIFEST_FILE = "teacher-logits.json"
LARGEST_UINT16_VOCABULARY = 2**16
COLUMNS = ("ids", "logits", "log_rest")


class StoredLogitsError(RuntimeError):
    """Stored logits broke, or are not those of the batch, while a run was reading them."""


class LogitsManifest(BaseModel):
    """What stored logits belong to.

    Attributes:
        data_fingerprint: of the prepared data.
        seed: of the run; order and masking follow from it.
        masking: the recipe's masking section.
        positions: which positions are stored.
        temperature: that `log_rest` was made at.
        teacher: as the recipe names it.
        teacher_identity: hash of its weights, or its name.
        vocabulary_size: width of the teacher's logits.
        top_k: tokens stored a position.
        global_size: samples a step.
        steps: optimizer steps covered, from 0.
        steps_per_shard: the last shard may have fewer.
        precision: that the teacher ran in.
        versions: of the libraries that wrote it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[2] = 2
    data_fingerprint: str
    seed: int
    masking: dict[str, Any]
    positions: Positions
    temperature: float
    teacher: str
    teacher_identity: str
    vocabulary_size: int
    top_k: int
    global_size: int
    steps: int
    steps_per_shard: int
    precision: str
    versions: dict[str, str]

    @property
    def samples(self) -> int:
        """Samples of the stream that are covered."""
        return self.steps * self.global_size

    @property
    def samples_per_shard(self) -> int:
        """Samples of every shard but perhaps the last."""
        return self.steps_per_shard * self.global_size

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.steps // self.steps_per_shard)

    def samples_of(self, number: int) -> int:
        """Return how many samples a shard has."""
        return min(self.samples_per_shard, self.samples - number * self.samples_per_shard)

    def missing(self, folder: Path) -> list[int]:
        """Return the numbers of the shards that are not there yet."""
        return [number for number in range(self.shards) if not shard_path(folder, number).is_file()]


def shard_path(folder: Path, number: int) -> Path:
    """Return the file of one shard."""
    return folder / f"logits-{number:05d}.safetensors"


def bytes_per_position(top_k: int, vocabulary_size: int) -> int:
    """Return what one position costs on disk."""
    return top_k * (id_type(vocabulary_size).itemsize + 2) + 4


def id_type(vocabulary_size: int) -> np.dtype[Any]:
    """Return the integer type that holds every token id."""
    return np.dtype(np.uint16 if vocabulary_size <= LARGEST_UINT16_VOCABULARY else np.int32)


def columns_of(
    manifest: LogitsManifest, samples: int, positions: int
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return type (as safetensors names it) and shape of every column of a shard."""
    ids = "U16" if id_type(manifest.vocabulary_size) == np.uint16 else "I32"
    return {
        "offsets": ("I64", (samples + 1,)),
        "rows": ("U64", (samples,)),
        "ids": (ids, (positions, manifest.top_k)),
        "logits": ("F16", (positions, manifest.top_k)),
        "log_rest": ("F32", (positions,)),
    }


def read_logits_manifest(folder: Path) -> LogitsManifest:
    """Read and check the manifest.

    Raises:
        UserError: the folder has none, or one of another version.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise UserError(
            f"{folder}: no {MANIFEST_FILE}: no stored logits (run: sparse-pretrain teacher-logits RECIPE {folder})"
        )
    try:
        return LogitsManifest.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {where}: {first['msg']}; make the logits again") from None


def write_shard(
    path: Path,
    counts: Sequence[int],
    hashes: Sequence[NDArray[np.uint64]],
    parts: Sequence[TopLogits],
    manifest: LogitsManifest,
) -> None:
    """Write one shard atomically.

    Args:
        path: where.
        counts: positions of each sample, in the stream's order.
        hashes: of consecutive samples (see `row_hashes`); together as many as `counts`.
        parts: logits of consecutive samples; together sum(counts) positions.
        manifest: of the folder.
    """
    ids, logits, log_rest = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
    if len(ids) != sum(counts):
        raise ValueError(f"{len(ids)} positions of logits for samples that have {sum(counts)}")
    columns = {
        "offsets": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        "rows": np.concatenate(hashes),
        "ids": ids.astype(id_type(manifest.vocabulary_size)),
        "logits": logits.astype(np.float16),
        "log_rest": log_rest.astype(np.float32),
    }
    with atomic_path(path) as temporary:
        save_file(columns, temporary)


class StoredLogits:
    """A teacher that reads instead of computing: batch of the training stream in, its top logits out."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        """Open the folder.

        Raises:
            UserError: its manifest is missing or broken.
        """
        self.manifest = read_logits_manifest(folder)
        self._folder = folder
        self._device = device
        self._number = -1
        self._file: Any = None
        self._offsets = np.zeros(1, dtype=np.int64)
        self._rows = np.zeros(0, dtype=np.uint64)

    def __call__(self, batch: Batch) -> TopLogits:
        """Return the logits of the batch's positions, row by row as the batch has them; none if it counts nothing.

        Raises:
            ValueError: the batch is not of the training stream.
            StoredLogitsError: a shard broke since it was checked, or was made from other tokens.
        """
        if batch.stream is None:
            raise ValueError("stored logits belong to training batches")
        if not batch.counts.sequences:
            return self._nothing()
        places = [int(place) for place in batch.stream]
        samples = (self._sample(*sample) for sample in zip(places, row_hashes(batch), strict=True))
        pieces = [sample for sample in samples if sample is not None]
        expected = batch.counts.real if self.manifest.positions == "all" else batch.counts.predicted
        found = sum(len(piece[2]) for piece in pieces)
        if found != expected:
            raise StoredLogitsError(f"{self._folder}: {found} stored positions for {expected} of the batch")
        if not pieces:
            return self._nothing()
        ids, logits, log_rest = (np.concatenate(column) for column in zip(*pieces, strict=True))
        columns = (ids.astype(np.int64), logits, log_rest)
        return TopLogits(*(torch.from_numpy(column).to(self._device) for column in columns))

    def _nothing(self) -> TopLogits:
        nothing = torch.zeros(0, self.manifest.top_k, device=self._device)
        return TopLogits(nothing.long(), nothing.half(), nothing.sum(dim=1))

    def _sample(self, place: int, row_hash: np.uint64) -> tuple[np.ndarray, ...] | None:
        number, within = divmod(place, self.manifest.samples_per_shard)
        if number != self._number:
            self._open(number)
        if self._rows[within] != row_hash:
            raise StoredLogitsError(
                f"{shard_path(self._folder, number)}: sample {place} of the stream was made from other tokens "
                "than the run trains on; make the logits again with this version: sparse-pretrain teacher-logits"
            )
        first, last = (int(offset) for offset in self._offsets[within : within + 2])
        if first == last:
            return None
        return tuple(self._file.get_slice(name)[first:last] for name in COLUMNS)

    def _open(self, number: int) -> None:
        path = shard_path(self._folder, number)
        try:
            self._file = safe_open(str(path), framework="np").__enter__()
            self._offsets = self._file.get_tensor("offsets")
            self._rows = self._file.get_tensor("rows")
        except (SafetensorError, OSError) as error:
            raise StoredLogitsError(
                f"{path}: broken shard of logits ({error}); delete it and run teacher-logits again"
            ) from None
        self._number = number
