"""The pipeline from a unit of a source to tokenized documents, as steps of datatrove.

Every raw document passes through every step, a dropped one too: it carries the reason and the beginning of its
text to the last step, which counts. So steps share no state, and any order of units gives the same files.

datatrove's own cost is 5 microseconds a document, 1 % of this pipeline (docs/data.md has the measurement).
"""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from time import perf_counter

from datatrove.data import Document as Item
from datatrove.pipeline.base import PipelineStep

from data_prep.documents import Drop, Fault, Raw, identify
from data_prep.near_duplicates import bands_of
from data_prep.sentences import split_sentences
from data_prep.sources.base import Source, Unit, beginning
from data_prep.token_files import TokenFileWriter
from data_prep.tokens import Encoder

Items = Iterator[Item]
TextFunction = Callable[[str], str | Drop]

# Large enough to keep the tokenizer's library busy, small enough for memory not to matter.
BATCH_CHARACTERS = 256 * 1024
BATCH_DOCUMENTS = 512


class ReadUnit(PipelineStep):
    """Reads one unit of a source: task n the n-th."""

    type = "reader"
    name = "source"

    def __init__(self, source: Source, units: list[Unit], maximum_characters: int) -> None:
        """See `sources.base`; a raw document of more than `maximum_characters` is dropped unread."""
        super().__init__()
        self.source = source
        self.units = units
        self.maximum_characters = maximum_characters

    def run(self, data: Items | None, rank: int = 0, world_size: int = 1) -> Items:
        """Yield the unit's raw documents."""
        number = 0
        for number, raw in enumerate(self.source.read(self.units[rank]), start=1):
            yield as_item(raw, f"{rank}/{number - 1}", self.maximum_characters)
        self.stat_update("documents", value=number)


def as_item(raw: Raw, name: str, maximum_characters: int) -> Item:
    """Return a raw document in datatrove's form; `drop` and `faults` stand in its metadata."""
    drop = raw.drop
    text = raw.text
    if drop is None and len(text) > maximum_characters:
        drop = Drop.TOO_LONG
    is_only_fault = raw.fault is not None and drop is None and not text
    return Item(
        text=text if drop is None else beginning(text),
        id=name,
        metadata={
            "drop": drop,
            "faults": [] if raw.fault is None else [raw.fault],
            "is_document": not is_only_fault,
        },
    )


class Text(PipelineStep):
    """Applies a function from text to text, or to a reason to drop the document."""

    type = "text"

    def __init__(self, name: str, function: TextFunction, counts: Fault | None = None) -> None:
        """`function` must be pure and picklable; documents that it changes are counted as `counts`, if given."""
        super().__init__()
        self.name = name
        self.function = function
        self.counts = counts

    def run(self, data: Items | None, rank: int = 0, world_size: int = 1) -> Items:
        """Yield every document, changed or dropped."""
        seconds = 0.0
        for item in data or ():
            if is_kept(item):
                began = perf_counter()
                result = self.function(item.text)
                seconds += perf_counter() - began
                if isinstance(result, Drop):
                    drop(item, result)
                    self.stat_update(f"dropped_{result.value}")
                else:
                    if self.counts is not None and result != item.text:
                        item.metadata["faults"].append(self.counts)
                    item.text = result
            yield item
        # Once for all documents: datatrove's own way, one by one, takes longer than many of the functions.
        self.stats.time_stats.update(seconds, unit="task")


class Tokenize(PipelineStep):
    """Splits documents into sentences and encodes a batch of documents at a time."""

    type = "tokens"
    name = "sentences and tokens"

    def __init__(self, tokenizer_file: Path, vocabulary_size: int, with_bands: bool) -> None:
        """`tokenizer_file`: the fast tokenizer's JSON; `with_bands`: also compute `near_duplicates.bands_of`."""
        super().__init__()
        self.with_bands = with_bands
        self.tokenizer_file = tokenizer_file
        self.vocabulary_size = vocabulary_size

    def run(self, data: Items | None, rank: int = 0, world_size: int = 1) -> Items:
        """Yield every document; kept ones with `tokens`, `sentence_ends` and `identity` in the metadata."""
        encoder = load_encoder(self.tokenizer_file, self.vocabulary_size)
        for batch in batches(data or iter(())):
            kept = [item for item in batch if is_kept(item)]
            with self.track_time("batch"):
                total = 0
                encoded = encoder.encode([split_sentences(item.text) for item in kept])
                for item, (tokens, ends) in zip(kept, encoded, strict=True):
                    if not len(tokens):
                        drop(item, Drop.NO_TEXT)
                        continue
                    item.metadata |= {
                        "tokens": tokens,
                        "sentence_ends": ends,
                        "identity": identify(item.text),
                    }
                    if self.with_bands:
                        item.metadata["bands"] = bands_of(tokens)
                    total += len(tokens)
                self.stat_update("tokens", value=total, unit="batch")
            yield from batch


class WriteTokens(PipelineStep):
    """Writes the unit's file, whole or not at all."""

    type = "writer"
    name = "tokenized documents"

    def __init__(self, folder: Path, vocabulary_size: int) -> None:
        """Unit n is written to `folder/units/n.arrow`."""
        super().__init__()
        self.folder = folder
        self.vocabulary_size = vocabulary_size

    def run(self, data: Items | None, rank: int = 0, world_size: int = 1) -> Items:
        """Write what comes; yield nothing."""
        with TokenFileWriter(unit_file(self.folder, rank), self.vocabulary_size) as writer:
            for item in data or ():
                meta = item.metadata
                for fault in meta["faults"]:
                    writer.note(fault)
                if not meta["is_document"]:
                    continue
                if meta["drop"] is not None:
                    writer.drop(meta["drop"], item.text)
                else:
                    writer.add(
                        meta["identity"],
                        len(item.text),
                        meta["tokens"],
                        meta["sentence_ends"],
                        meta.get("bands"),
                    )
        yield from ()


def unit_file(folder: Path, unit: int) -> Path:
    """Return where a unit's tokenized documents are."""
    return folder / "units" / f"{unit:05d}.arrow"


def is_kept(item: Item) -> bool:
    """Tell whether this is a document that nothing has dropped so far."""
    return item.metadata["drop"] is None and bool(item.metadata["is_document"])


def drop(item: Item, reason: Drop) -> None:
    """Drop a document; what is left of it is a sample."""
    item.metadata["drop"] = reason
    item.text = beginning(item.text)


def batches(items: Items) -> Iterator[list[Item]]:
    """Group the stream for the tokenizer."""
    batch: list[Item] = []
    characters = 0
    for item in items:
        batch.append(item)
        characters += len(item.text)
        if characters >= BATCH_CHARACTERS or len(batch) >= BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


@cache
def load_encoder(tokenizer_file: Path, vocabulary_size: int) -> Encoder:
    """Return the encoder, built once a process."""
    return Encoder(tokenizer_file.read_text(encoding="utf-8"), vocabulary_size)
