"""An answer to a question, as a span of a context (SQuAD 1.1 and 2.0); long contexts in windows that overlap."""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from sparse_pretrain.errors import UserError
from sparse_pretrain.finetune.kinds.base import (
    LENGTH,
    NEVER,
    Answers,
    Array,
    Batch,
    Columns,
    TaskKind,
    pad,
    texts,
)
from sparse_pretrain.finetune.spans import Window, best_answer
from sparse_pretrain.finetune.squad import squad_metrics

# Longer questions are cut, as BERT's script does (and at half of a window that is small itself).
LONGEST_QUESTION = 64
EXAMPLE, OFFSETS, NULL = "example", "offsets", "null"


class Span(TaskKind):
    """Question, context, and answers `{text: […], answer_start: […]}`; the first answer is the one trained."""

    factory = "AutoModelForQuestionAnswering"
    label_names = ("start_positions", "end_positions")
    has_classes = False

    def classes(self, where: str, train: Columns) -> tuple[str, ...]:
        """Return nothing: places in a text have no names."""
        return ()

    def examples(self, where: str, split: str, columns: Columns, names: tuple[str, ...]) -> Dataset:
        """Return columns `question`, `context`, `answers` (texts) and `starts` (characters)."""
        questions = texts(where, self.task.text, columns)
        contexts = texts(where, str(self.task.text_pair), columns)
        answers, starts = [], []
        for row, (value, context) in enumerate(zip(columns[self.task.label], contexts, strict=True), start=1):
            said, places = answers_of(f"{where}: row {row}: column {self.task.label!r}", value, context)
            if not said and not self.task.span.no_answer:
                raise UserError(
                    f"{where}: row {row}: no answer in column {self.task.label!r}; set task.span.no_answer=true when "
                    "questions may have none (SQuAD 2.0)"
                )
            answers.append(said)
            starts.append(places)
        refuse_wrong_places(f"{where}: column {self.task.label!r}", answers, starts, contexts)
        return Dataset.from_dict(
            {"question": questions, "context": contexts, "answers": answers, "starts": starts}
        )

    def encode(self, tokenizer: PreTrainedTokenizerBase, examples: Dataset, max_length: int) -> Dataset:
        """Return a row a window: tokens, the answer's first and last token, and where tokens stand in the context."""
        if not tokenizer.is_fast:
            raise UserError(
                "question answering needs a fast tokenizer (tokenizer.json), which knows where words stand"
            )
        examples = examples.map(
            lambda row: {"question": cut(tokenizer, row["question"], max_length)}, keep_in_memory=True
        )
        questions = tokenizer(list(examples["question"]), add_special_tokens=False)["input_ids"]
        longest = max(map(len, questions))
        room = max_length - longest - tokenizer.num_special_tokens_to_add(pair=True)
        if self.task.span.stride >= room:
            raise UserError(
                f"task.span.stride = {self.task.span.stride}: with training.max_length = {max_length} and questions of "
                f"{longest} tokens a window has room for {room} tokens of context; use less than that"
            )
        return examples.map(
            lambda part, rows: windows_of(tokenizer, part, rows, max_length, self.task.span.stride),
            batched=True,
            with_indices=True,
            remove_columns=examples.column_names,
            keep_in_memory=True,
        )

    def collate(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]]) -> Batch:
        """Return a batch with the first and last token of each answer."""
        labels = {name: torch.tensor([row[name] for row in rows]) for name in self.label_names}
        return {**pad(tokenizer, rows), **labels}

    def outputs(self, model: nn.Module, inputs: Batch) -> tuple[Tensor, ...]:
        """Return logits of starts and of ends [rows, length]; padding is never chosen."""
        said = model(**inputs)
        padding = inputs["attention_mask"] == 0
        return tuple(
            logits.float().masked_fill(padding, NEVER) for logits in (said.start_logits, said.end_logits)
        )

    def answers(self, outputs: tuple[Tensor, ...], batch: Batch) -> list[Answers]:
        """Return starts and ends: classes are the places in the window."""
        return [Answers(logits, batch[name]) for logits, name in zip(outputs, self.label_names, strict=True)]

    def score(
        self, examples: Dataset, encoded: Dataset, outputs: list[tuple[Array, ...]]
    ) -> dict[str, float]:
        """Return exact match and F1 by the official rules."""
        windows: list[list[Window]] = [[] for _ in range(len(examples))]
        places = zip(encoded[EXAMPLE], encoded[OFFSETS], encoded[NULL], outputs, strict=True)
        for owner, offsets, null, (start, end) in places:
            length = len(offsets)
            windows[owner].append(Window(start[:length], end[:length], offsets, null))
        said = [
            best_answer(context, own, self.task.span)
            for context, own in zip(examples["context"], windows, strict=True)
        ]
        return squad_metrics(said, examples["answers"], self.task.span.no_answer)


def windows_of(
    tokenizer: PreTrainedTokenizerBase,
    part: dict[str, list[Any]],
    rows: list[int],
    max_length: int,
    stride: int,
) -> dict[str, list[Any]]:
    """Return the windows of some examples, whose numbers are `rows`.

    An answer that is not wholly in a window is none for it: the window's labels point to [CLS].
    """
    tokens = tokenizer(
        part["question"],
        part["context"],
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_attention_mask=False,
    )
    owners = tokens.pop("overflow_to_sample_mapping")
    offsets = [
        [
            list(place) if part == 1 else None
            for place, part in zip(row, tokens.sequence_ids(number), strict=True)
        ]
        for number, row in enumerate(tokens.pop("offset_mapping"))
    ]
    special = tokenizer.cls_token_id
    nulls = [row.index(special) if special in row else 0 for row in tokens["input_ids"]]
    spans = []
    for owner, places, null in zip(owners, offsets, nulls, strict=True):
        said, starts = part["answers"][owner], part["starts"][owner]
        span = tokens_of_answer(places, said[0], starts[0]) if said else None
        spans.append(span or (null, null))
    return {
        **tokens,
        "start_positions": [first for first, _ in spans],
        "end_positions": [last for _, last in spans],
        EXAMPLE: [rows[owner] for owner in owners],
        OFFSETS: offsets,
        NULL: nulls,
        LENGTH: [len(row) for row in tokens["input_ids"]],
    }


def answers_of(where: str, value: Any, context: str) -> tuple[list[str], list[int]]:
    """Return texts and first characters of the answers of one question.

    Raises:
        UserError: not of SQuAD's form, or a place outside the context.
    """
    if isinstance(value, list) and all(isinstance(one, dict) for one in value):
        # SQuAD's own files: a list of answers; `datasets` turns it into a dict of lists.
        value = {name: [one.get(name) for one in value] for name in ("text", "answer_start")}
    said, places = (value.get("text"), value.get("answer_start")) if isinstance(value, dict) else (None, None)
    if not isinstance(said, list) or not isinstance(places, list) or len(said) != len(places):
        raise UserError(f"{where}: {value!r}: must be {{text: [...], answer_start: [...]}}, as SQuAD has it")
    for text, place in zip(said, places, strict=True):
        if not isinstance(text, str) or not isinstance(place, int) or not 0 <= place <= len(context):
            raise UserError(
                f"{where}: {text!r} at {place!r}: not a place in a context of {len(context)} characters"
            )
    return said, places


def refuse_wrong_places(
    where: str, answers: list[list[str]], starts: list[list[int]], contexts: list[str]
) -> None:
    """Refuse data whose answers mostly do not stand where they say (bytes counted, say, instead of characters)."""
    pairs = [
        (text, context[start : start + len(text)])
        for said, places, context in zip(answers, starts, contexts, strict=True)
        for text, start in zip(said, places, strict=True)
    ]
    wrong = [(text, found) for text, found in pairs if text != found]
    if len(wrong) > len(pairs) / 2:
        text, found = wrong[0]
        raise UserError(
            f"{where}: {len(wrong)} of {len(pairs)} answers do not stand at their answer_start: {text!r} is wanted, "
            f"{found!r} is there; answer_start counts characters from 0"
        )


def cut(tokenizer: PreTrainedTokenizerBase, question: str, max_length: int) -> str:
    """Return a question without leading spaces, cut to `LONGEST_QUESTION` tokens or half a window."""
    question = question.lstrip()
    limit = min(LONGEST_QUESTION, max_length // 2)
    offsets = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return question[: offsets[limit - 1][1]] if len(offsets) > limit else question


def tokens_of_answer(
    offsets: Sequence[Sequence[int] | None], text: str, start: int
) -> tuple[int, int] | None:
    """Return the first and last token that an answer touches; None when it is not wholly in the window."""
    end = start + len(text)
    inside = [(place, offset) for place, offset in enumerate(offsets) if offset is not None]
    if not inside or start < inside[0][1][0] or end > inside[-1][1][1]:
        return None
    touched = [place for place, offset in inside if offset[1] > start and offset[0] < end]
    return (touched[0], touched[-1]) if touched else None
