"""The contract between data preparation and training: `manifest.json` and the shards it lists.

A prepared folder holds::

    manifest.json
    tokenizer/                    a Hugging Face tokenizer folder
    train/shard-00000.arrow …     Arrow IPC files, uncompressed, so that training maps them
    validation/shard-00000.arrow …

Columns of a shard, a row a training sample:

    input_ids       fixed-size list of uint16 (vocabulary <= 65,536) or uint32, padded with the pad token
    length          uint16, real tokens in the row, special tokens included
    second_start    uint16, with pairs: index of the second segment's first token
    random_next     uint8, with pairs: 1 when the second segment does not follow the first (NSP label)
    sequence_start  list of uint16, where a row holds several sequences: index of each one's first token;
                    `second_start` and `random_next` are such lists then, a value for each sequence

A sequence is what stands between one set of special tokens; attention never looks out of it.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from sparse_pretrain.errors import UserError
from sparse_pretrain.files import read_json, sha256_json, write_text

MANIFEST_FILE = "manifest.json"
Split = Literal["train", "validation"]
# One pair a row, padded; running text; several pairs; several documents or pieces of them.
RowFormat = Literal["pairs", "packed", "packed_pairs", "packed_documents"]
WITH_PAIRS: tuple[RowFormat, ...] = ("pairs", "packed_pairs")
WITH_SEQUENCES: tuple[RowFormat, ...] = ("packed_pairs", "packed_documents")


class Part(BaseModel):
    """One object of the manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Shard(Part):
    """One Arrow file; `file` is relative to the prepared folder."""

    file: str
    rows: int
    bytes: int
    sha256: str


class SplitCounts(Part):
    """What one split holds; `tokens` counts real tokens, special tokens included."""

    documents: int
    rows: int
    tokens: int
    shards: list[Shard]


class Source(Part):
    """One input: where it came from, the hash of its bytes, what was kept, dropped (and why) and damaged."""

    kind: str
    name: str
    sha256: str
    documents: int
    characters: int
    dropped: dict[str, int]
    faults: dict[str, int] = {}


class SpecialTokens(Part):
    """Ids that masking and padding need; `never_masked` lists every special token's id."""

    pad: int
    mask: int
    cls: int
    sep: int
    never_masked: list[int]


class Manifest(Part):
    """Everything training needs to know of a prepared folder, and where it came from."""

    version: Literal[1] = 1
    format: RowFormat
    sequence_length: int
    seed: int
    vocabulary_size: int
    tokenizer_sha256: str
    special_tokens: SpecialTokens
    sources: list[Source]
    splits: dict[Split, SplitCounts]
    settings: dict[str, Any]
    versions: dict[str, str]
    fingerprint: str = ""

    @property
    def has_pairs(self) -> bool:
        """Whether there are segment pairs with next-sentence labels."""
        return self.format in WITH_PAIRS

    @property
    def has_sequences(self) -> bool:
        """Whether a row may hold several sequences."""
        return self.format in WITH_SEQUENCES

    def with_fingerprint(self) -> "Manifest":
        """Return a copy whose fingerprint covers rows, their order, the tokenizer and the format."""
        content = {
            "format": self.format,
            "sequence_length": self.sequence_length,
            "tokenizer": self.tokenizer_sha256,
            "shards": {
                split: [shard.sha256 for shard in counts.shards] for split, counts in self.splits.items()
            },
        }
        return self.model_copy(update={"fingerprint": sha256_json(content)[:16]})

    def fill(self, split: Split) -> float:
        """Return real tokens / row slots of a split, in [0, 1]."""
        counts = self.splits[split]
        return counts.tokens / (counts.rows * self.sequence_length) if counts.rows else 0.0


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` atomically; the last thing that preparation does."""
    write_text(folder / MANIFEST_FILE, manifest.model_dump_json(indent=2) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Read and check `manifest.json`.

    Raises:
        UserError: the folder was not prepared, or was prepared by another version.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise UserError(
            f"{folder}: no {MANIFEST_FILE}: not a prepared folder (run: sparse-pretrain data prepare RECIPE.yaml)"
        )
    try:
        return Manifest.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {where}: {first['msg']}; prepare the data again") from None
