"""One split on its way to the disk: documents in, shards out."""

from pathlib import Path

from data_prep.best_fit import Apart, BestFitPacker, RunningText
from data_prep.documents import Document
from data_prep.packed import Packer
from data_prep.packed_pairs import PairPacker
from data_prep.pairs import PairBuilder
from data_prep.recipe import PrepareRecipe
from data_prep.rows import RowBuilder
from data_prep.shards import ShardWriter
from data_prep.tokenizer import TokenFrame
from data_prep.tokens import token_type
from sparse_pretrain.data.manifest import Split, SplitCounts


class SplitOutput:
    """Row builder and writer of one split."""

    def __init__(self, recipe: PrepareRecipe, frame: TokenFrame, folder: Path, split: Split) -> None:
        self.documents = 0
        self.writer = ShardWriter(
            folder=folder,
            split=split,
            row_format=recipe.format,
            sequence_length=recipe.sequence_length,
            dtype=token_type(frame.vocabulary_size),
            padding=frame.special.pad,
            rows_per_shard=recipe.rows_per_shard,
        )
        self._builder = row_builder(recipe, frame)

    def add(self, document: Document) -> None:
        """Take one document in."""
        self.documents += 1
        for row in self._builder.add(document):
            self.writer.add(row)

    def close(self) -> SplitCounts:
        """Write what is left and return the counts."""
        for row in self._builder.finish():
            self.writer.add(row)
        self.writer.close()
        return SplitCounts(
            documents=self.documents,
            rows=self.writer.rows,
            tokens=self.writer.tokens,
            shards=self.writer.shards,
        )


def row_builder(recipe: PrepareRecipe, frame: TokenFrame) -> RowBuilder:
    """Return the builder of the recipe's format."""
    packed, slots = recipe.packed, recipe.sequence_length
    longest = packed.longest_sequence
    match recipe.format:
        case "pairs":
            return PairBuilder(frame.pair, slots, recipe.pairs, recipe.seed)
        case "packed_pairs":
            pairs = PairBuilder(frame.pair, longest or slots, recipe.pairs, recipe.seed)
            return PairPacker(pairs, slots, packed.window_tokens)
        case "packed_documents":
            return BestFitPacker(Apart(frame.single, slots, longest), packed.window_tokens)
        case "packed":
            if packed.method == "best_fit":
                layout = RunningText(frame.single, frame.special.sep, slots)
                return BestFitPacker(layout, packed.window_tokens)
            return Packer(frame.single, frame.special.sep, slots, packed.whole_sentences)
