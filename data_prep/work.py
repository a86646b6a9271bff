"""What a worker does with a batch of raw documents: extract, clean, split, encode."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from data_prep.clean import clean
from data_prep.documents import Document, Drop, identify
from data_prep.sentences import split_sentences
from data_prep.sources.base import Extract
from data_prep.tokens import Encoder

# Large enough that handing a batch to a worker costs nothing beside the work, small enough for an even load.
BATCH_CHARACTERS = 256 * 1024
BATCH_DOCUMENTS = 512


class Batch(NamedTuple):
    """Raw documents of one source, in its order, and how to make text of them."""

    extract: Extract
    raw: list[str | Drop]


def batches(extract: Extract, raw_documents: Iterable[str | Drop]) -> Iterator[Batch]:
    """Group a source's stream into pieces of work."""
    raw: list[str | Drop] = []
    characters = 0
    for document in raw_documents:
        raw.append(document)
        characters += len(document) if isinstance(document, str) else 0
        if characters >= BATCH_CHARACTERS or len(raw) >= BATCH_DOCUMENTS:
            yield Batch(extract, raw)
            raw, characters = [], 0
    if raw:
        yield Batch(extract, raw)


class Processor:
    """From raw documents to tokenized ones; built once in each worker."""

    def __init__(self, definition: str, vocabulary_size: int, minimum_characters: int) -> None:
        """See `Encoder` and the recipe's `minimum_characters`."""
        self._encoder = Encoder(definition, vocabulary_size)
        self._minimum_characters = minimum_characters

    def __call__(self, batch: Batch) -> list[Document | Drop]:
        """Return a document, or the reason why it was dropped, for each raw one."""
        texts = [self._text(batch.extract, raw) for raw in batch.raw]
        kept = [text for text in texts if isinstance(text, str)]
        encoded = iter(self._encoder.encode([split_sentences(text) for text in kept]))
        results: list[Document | Drop] = []
        for text in texts:
            if isinstance(text, Drop):
                results.append(text)
                continue
            tokens, ends = next(encoded)
            document = Document(identify(text), len(text), tokens, ends)
            results.append(document if len(tokens) else Drop.NO_TEXT)
        return results

    def _text(self, extract: Extract, raw: str | Drop) -> str | Drop:
        extracted = raw if isinstance(raw, Drop) else extract(raw)
        if isinstance(extracted, Drop):
            return extracted
        text = clean(extracted)
        if not text:
            return Drop.NO_TEXT
        return text if len(text) >= self._minimum_characters else Drop.TOO_SHORT
