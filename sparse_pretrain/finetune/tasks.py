"""A task section becomes data sets with checked texts and numbered labels."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from sparse_pretrain.errors import UserError
from sparse_pretrain.finetune.recipe import TaskSection
from sparse_pretrain.finetune.tables import Columns, describe, read_columns

TRAIN, VALIDATION, TEST = "train", "validation", "test"
# With more classes than this per row, a label column is a score or an identifier, not a class.
MOST_CLASSES_PER_ROW = 0.5
FEW_ROWS = 20


@dataclass(frozen=True)
class TaskData:
    """The splits of a task.

    Attributes:
        labels: names of the classes in the order of their numbers; empty for a regression.
        splits: by name (`train`, `validation`, `test` and the task's `more_validation`); columns `text`,
            `text_pair` (tasks on pairs), `label` (class number, or score divided by `label_scale`).
    """

    labels: tuple[str, ...]
    splits: dict[str, Dataset]

    def fingerprint(self) -> str:
        """Return a SHA-256 over class names, split names, texts and labels."""
        digest = hashlib.sha256(json.dumps(self.labels).encode())
        for name, split in self.splits.items():
            digest.update(name.encode())
            for column in sorted(split.column_names):
                digest.update(json.dumps([column, list(split[column])]).encode())
        return digest.hexdigest()


def load_task(task: TaskSection, labels: Sequence[str] | None = None) -> TaskData:
    """Read, split, check and number the data of a task.

    Args:
        task: the recipe's section.
        labels: classes a model already has, in the order of their numbers; they take the place of those
            found in the training data.

    Raises:
        UserError: naming file, column and value of what is wrong.
    """
    columns = read_splits(task)
    if task.kind == "regression":
        names: tuple[str, ...] = ()
    else:
        names = tuple(labels or task.labels) or classes_of(task, columns[TRAIN])
    splits = {name: numbered(task, name, part, names) for name, part in columns.items()}
    return TaskData(names, splits)


def read_splits(task: TaskSection) -> dict[str, Columns]:
    """Read every split, hold out a validation part where there is none, apply the limits."""
    train = read_columns(task, task.train)
    if task.validation is not None:
        validation = read_columns(task, task.validation)
    else:
        train, validation = hold_out(task, train)
    splits = {
        TRAIN: subset(train, task.limit_train, task.split_seed),
        VALIDATION: subset(validation, task.limit_validation, task.split_seed),
    }
    for name, source in task.more_validation.items():
        splits[name] = subset(read_columns(task, source), task.limit_validation, task.split_seed)
    if task.test is not None:
        splits[TEST] = read_columns(task, task.test)
    return splits


def hold_out(task: TaskSection, columns: Columns) -> tuple[Columns, Columns]:
    """Split one set into a training and a validation part, always the same for the same `split_seed`."""
    count = len(columns[task.label])
    size = task.validation_size
    held = size if isinstance(size, int) else max(1, round(count * size))
    if held >= count:
        raise UserError(
            f"{describe(task, task.train)}: task.validation_size = {size}: leaves none of {count} rows for training"
        )
    order = np.random.default_rng(task.split_seed).permutation(count)
    # Sorted, so that both parts keep the file's order whatever the draw was.
    return take(columns, np.sort(order[held:])), take(columns, np.sort(order[:held]))


def subset(columns: Columns, limit: int | None, seed: int) -> Columns:
    """Return a random part of `limit` rows; smaller limits give parts of larger ones."""
    count = len(next(iter(columns.values())))
    if limit is None or limit >= count:
        return columns
    order = np.random.default_rng(seed).permutation(count)[:limit]
    return take(columns, np.sort(order))


def take(columns: Columns, rows: np.ndarray[Any, Any]) -> Columns:
    """Return the given rows."""
    return {name: [values[row] for row in rows] for name, values in columns.items()}


def classes_of(task: TaskSection, train: Columns) -> tuple[str, ...]:
    """Return the classes of the training data, numbers by size, other names by alphabet."""
    where = f"{describe(task, task.train)}: column {task.label!r}"
    values = train[task.label]
    found = {str(value) for value in values if value is not None}
    if len(found) < 2:
        raise UserError(f"{where}: only {sorted(found)} occurs; a classification needs two classes or more")
    if len(values) > FEW_ROWS and len(found) > len(values) * MOST_CLASSES_PER_ROW:
        raise UserError(
            f"{where}: {len(found)} different values in {len(values)} rows are no classes; set task.kind = regression "
            "or name another column"
        )
    try:
        return tuple(sorted(found, key=float))
    except ValueError:
        return tuple(sorted(found))


def numbered(task: TaskSection, split: str, columns: Columns, names: tuple[str, ...]) -> Dataset:
    """Check one split and return it with its labels as numbers."""
    source = {
        TRAIN: task.train,
        VALIDATION: task.validation or task.train,
        TEST: task.test,
        **task.more_validation,
    }
    where = describe(task, str(source[split]))
    result = {"text": texts(where, task.text, columns)}
    if task.text_pair is not None:
        result["text_pair"] = texts(where, task.text_pair, columns)
    labels = columns[task.label]
    if task.kind == "regression":
        numbers: list[Any] = [score(where, task.label, value) / task.label_scale for value in labels]
    else:
        places = {name: place for place, name in enumerate(names)}
        for value in labels:
            if str(value) not in places:
                known = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
                raise UserError(
                    f"{where}: column {task.label!r}: {value!r} in the {split} data is not among the classes: {known}"
                )
        numbers = [places[str(value)] for value in labels]
    return Dataset.from_dict({**result, "label": numbers})


def texts(where: str, column: str, columns: Columns) -> list[str]:
    """Return a text column, refusing values that are no text, and a column without any text."""
    values = columns[column]
    for value in values:
        if not isinstance(value, str):
            raise UserError(f"{where}: column {column!r}: {value!r} is no text")
    if not any(value.strip() for value in values):
        raise UserError(f"{where}: column {column!r}: every text is empty")
    return values


def score(where: str, column: str, value: Any) -> float:
    """Return a regression label as a number."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(
            f"{where}: column {column!r}: {value!r} is no number; a regression needs one in every row"
        )
    return number
