"""A tag for every word (named entities, parts of speech)."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from sparse_pretrain.errors import UserError
from sparse_pretrain.finetune.entities import entity_metrics
from sparse_pretrain.finetune.kinds.base import (
    IGNORED,
    LENGTH,
    Answers,
    Array,
    Batch,
    Columns,
    TaskKind,
    number_of,
    pad,
    pad_labels,
    sorted_classes,
)

# Column of an encoded row: for each token, the word that it begins.
WORDS = "words"


class Tokens(TaskKind):
    """Words and their tags: lists, or text with spaces between. The first token of each word carries its tag."""

    factory = "AutoModelForTokenClassification"

    def classes(self, where: str, train: Columns) -> tuple[str, ...]:
        """Return the tags that occur."""
        found = {str(tag) for row in train[self.task.label] for tag in as_list(row)}
        if len(found) < 2:
            raise UserError(
                f"{where}: column {self.task.label!r}: only {sorted(found)} occurs; needs two tags or more"
            )
        return sorted_classes(found)

    def examples(self, where: str, split: str, columns: Columns, names: tuple[str, ...]) -> Dataset:
        """Return columns `words` and `tags` (numbers); a row without any word is left out."""
        result: dict[str, list[Any]] = {"words": [], "tags": []}
        word_column, tag_column = self.task.text, self.task.label
        for row, (words, tags) in enumerate(zip(columns[word_column], columns[tag_column], strict=True), 1):
            some, labels = as_list(words), as_list(tags)
            if len(some) != len(labels):
                raise UserError(
                    f"{where}: row {row}: {len(some)} words in {word_column!r} and {len(labels)} tags in "
                    f"{tag_column!r}; every word has one tag"
                )
            if not all(isinstance(word, str) for word in some):
                raise UserError(f"{where}: row {row}: column {word_column!r}: {words!r} are no words")
            if some:
                result["words"].append(some)
                result["tags"].append([number_of(where, tag_column, tag, split, names) for tag in labels])
        if not any(word.strip() for words in result["words"] for word in words):
            raise UserError(f"{where}: column {word_column!r}: every text is empty")
        # Scores are by tag names; the task's classes are not at hand where they are counted.
        return Dataset.from_dict({**result, "names": [list(names)] * len(result["words"])})

    def encode(self, tokenizer: PreTrainedTokenizerBase, examples: Dataset, max_length: int) -> Dataset:
        """Return tokens and their labels; words behind `max_length` have no token and count as outside."""

        def tokens_of(part: dict[str, list[Any]]) -> dict[str, Any]:
            tokens = tokenizer(
                part["words"],
                is_split_into_words=True,
                truncation=True,
                max_length=max_length,
                return_attention_mask=False,
            )
            words = [first_tokens(tokens.word_ids(row)) for row in range(len(part["tags"]))]
            labels = [
                [IGNORED if word is None else tags[word] for word in row]
                for row, tags in zip(words, part["tags"], strict=True)
            ]
            lengths = [len(row) for row in labels]
            return {**tokens, "labels": labels, WORDS: words, LENGTH: lengths}

        return examples.map(
            tokens_of, batched=True, remove_columns=examples.column_names, keep_in_memory=True
        )

    def collate(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]]) -> Batch:
        """Return a batch with labels [rows, length]."""
        batch = pad(tokenizer, rows)
        return {**batch, "labels": pad_labels([row["labels"] for row in rows], batch["input_ids"].shape[1])}

    def outputs(self, model: nn.Module, inputs: Batch) -> tuple[Tensor, ...]:
        """Return logits [rows, length, tags]."""
        return (model(**inputs).logits.float(),)

    def answers(self, outputs: tuple[Tensor, ...], batch: Batch) -> list[Answers]:
        """Return the first token of every word."""
        counts = batch["labels"] != IGNORED
        return [Answers(outputs[0][counts], batch["labels"][counts])]

    def score(
        self, examples: Dataset, encoded: Dataset, outputs: list[tuple[Array, ...]]
    ) -> dict[str, float]:
        """Return entity precision, recall and F1 by seqeval's rules, and the accuracy of tags."""
        truth, predicted = [], []
        names = examples[0]["names"]
        outside = names.index("O") if "O" in names else 0
        for tags, words, output in zip(examples["tags"], encoded[WORDS], outputs, strict=True):
            said = [outside] * len(tags)
            for place, word in enumerate(words):
                if word is not None:
                    said[word] = int(output[0][place].argmax())
            truth.append([names[tag] for tag in tags])
            predicted.append([names[tag] for tag in said])
        return entity_metrics(truth, predicted)


def as_list(value: Any) -> list[Any]:
    """Return words or tags as a list; text is split at spaces."""
    if isinstance(value, str):
        return value.split()
    return list(value) if isinstance(value, Sequence) else [value]


def first_tokens(words: list[int | None]) -> list[int | None]:
    """Return, for each token, the number of the word that it begins; None for all other tokens."""
    return [
        word if word is not None and (place == 0 or words[place - 1] != word) else None
        for place, word in enumerate(words)
    ]
