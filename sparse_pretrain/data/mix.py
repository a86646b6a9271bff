"""Several prepared folders as one split, mixed by weight.

An epoch of the mix is as long as it takes for every row of every set to come at least once; a set that weighs more than
its size is then repeated, each time in another order and with other masks. Which row a sample is, is a function of
its number, so the mix is a split like any other: the loader's order, its one integer of state and its shares for
any number of ranks hold unchanged.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np

from sparse_pretrain.config.model import DataSection
from sparse_pretrain.data.manifest import MANIFEST_FILE, Manifest, Split, SplitCounts, read_manifest
from sparse_pretrain.data.order import key_of, permute
from sparse_pretrain.data.shards import Numbers, PreparedSplit, Rows, ordered, rows_of
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import sha256_json

# What the sets of a mix must have in common for their rows to stand in one batch.
SHARED = ("format", "sequence_length", "vocabulary_size", "tokenizer_sha256", "special_tokens")


class MixedSplit:
    """One split of several prepared folders, indexed by sample number; see `PreparedSplit`."""

    def __init__(self, weights: Mapping[Path, float], split: Split) -> None:
        """Map every shard of every folder.

        Args:
            weights: by folder its share of the samples, relative to the others'.
            split: which split.

        Raises:
            UserError: a weight is not positive, the folders do not fit each other, or one cannot be read.
        """
        for folder, weight in weights.items():
            if not (weight > 0 and math.isfinite(weight)):
                raise UserError(f"data.mix: {folder}: {weight}: a weight must be a number above 0")
        if not weights:
            raise UserError("data.mix: names no folder")
        self._sets = [PreparedSplit(folder, split) for folder in weights]
        check_alike(list(weights), [one.manifest for one in self._sets])
        self._samples = samples_of(list(weights.values()), [len(one) for one in self._sets])
        self._ends = np.cumsum(self._samples)
        self.has_pairs = self._sets[0].has_pairs
        self.manifest = mixed_manifest([one.manifest for one in self._sets], split, self._samples)
        self._key = key_of("mix", self.manifest.fingerprint)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def places(self, samples: Numbers) -> tuple[Numbers, Numbers]:
        """Return (number of the set, row in it), int64 each, of every sample."""
        # Spread over the epoch, so that any run of samples, such as the first few held-out rows, is a mix too.
        spread = permute(samples, len(self), self._key)
        sets = np.searchsorted(self._ends, spread, side="right")
        within = spread - (self._ends - self._samples)[sets]
        rows = np.empty_like(within)
        for number in np.unique(sets):
            size = len(self._sets[number])
            chosen = sets == number
            turns, places = np.divmod(within[chosen], size)
            mine = rows[chosen]
            for turn in np.unique(turns):
                key = key_of("mix", self.manifest.fingerprint, int(number), int(turn))
                mine[turns == turn] = permute(places[turns == turn], size, key)
            rows[chosen] = mine
        return sets, rows

    def gather(self, samples: Numbers) -> Rows:
        """Copy the given samples' rows, in the given order."""
        sets, rows = self.places(samples)
        numbers = np.unique(sets)
        parts = [self._sets[number].columns(rows[sets == number]) for number in numbers]
        return rows_of(ordered(parts, [np.flatnonzero(sets == number) for number in numbers]))


# Whatever training can read: `manifest`, `has_pairs`, a length, and rows by their numbers.
AnySplit: TypeAlias = PreparedSplit | MixedSplit


def open_split(data: DataSection, split: Split) -> AnySplit:
    """Map one split of the recipe's prepared folder, or of its mix.

    Raises:
        UserError: a folder cannot be read, or those of a mix do not fit each other.
    """
    return PreparedSplit(data.path, split) if data.path is not None else MixedSplit(data.mix, split)


def training_manifest(data: DataSection) -> Manifest | None:
    """Return what training would read, from manifests alone; None while a folder is not prepared.

    Raises:
        UserError: a manifest cannot be read, or the folders of a mix do not fit each other.
    """
    if not all((folder / MANIFEST_FILE).is_file() for folder in data.folders):
        return None
    manifests = [read_manifest(folder) for folder in data.folders]
    if data.path is not None:
        return manifests[0]
    check_alike(list(data.folders), manifests)
    rows = [manifest.splits["train"].rows for manifest in manifests]
    return mixed_manifest(manifests, "train", samples_of(list(data.mix.values()), rows))


def samples_of(weights: list[float], sizes: list[int]) -> Numbers:
    """Return how many samples of an epoch each set gives: by weight, and no set less than all its rows."""
    shares = np.array(weights) / sum(weights)
    total = (np.array(sizes) / shares).max()
    samples: Numbers = np.maximum(np.array(sizes), np.rint(shares * total).astype(np.int64))
    return samples


def check_alike(folders: list[Path], manifests: list[Manifest]) -> None:
    """Check that the rows of all folders can stand in one batch.

    Raises:
        UserError: they cannot.
    """
    for folder, manifest in zip(folders[1:], manifests[1:], strict=True):
        for key in SHARED:
            first, other = getattr(manifests[0], key), getattr(manifest, key)
            if first != other:
                raise UserError(
                    f"data.mix: {folder} has {key} {other}, {folders[0]} has {first}; prepare both alike"
                )


def mixed_manifest(manifests: list[Manifest], split: Split, samples: Numbers) -> Manifest:
    """Return the manifest of a mix: counts of an epoch, and a fingerprint of what is mixed and how."""
    counts = [manifest.splits[split] for manifest in manifests]
    times = [number / one.rows for number, one in zip(samples.tolist(), counts, strict=True)]
    content = {"sets": [manifest.fingerprint for manifest in manifests], "samples": samples.tolist()}
    mixed = SplitCounts(
        documents=sum(one.documents for one in counts),
        rows=int(samples.sum()),
        tokens=round(sum(one.tokens * time for one, time in zip(counts, times, strict=True))),
        shards=[shard for one in counts for shard in one.shards],
    )
    return manifests[0].model_copy(
        update={
            "fingerprint": sha256_json(content)[:16],
            "sources": [source for manifest in manifests for source in manifest.sources],
            "splits": {**manifests[0].splits, split: mixed},
        }
    )
