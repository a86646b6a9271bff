"""A task section becomes data sets with checked texts and numbered labels."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from sparse_pretrain.errors import UserError
from sparse_pretrain.finetune.kinds import kind_of
from sparse_pretrain.finetune.kinds.base import Columns
from sparse_pretrain.finetune.recipe import TaskSection
from sparse_pretrain.finetune.tables import describe, read_columns

TRAIN, VALIDATION, TEST = "train", "validation", "test"


@dataclass(frozen=True)
class TaskData:
    """The splits of a task.

    Attributes:
        labels: names of the classes in the order of their numbers; empty for a kind of task without classes.
        splits: by name (`train`, `validation`, `test` and the task's `more_validation`), columns as the kind
            of task has them (`TaskKind.examples`).
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
    kind = kind_of(task)
    columns = read_splits(task)
    where = {name: describe(task, source) for name, source in sources_of(task).items()}
    names: tuple[str, ...] = ()
    if kind.has_classes:
        names = tuple(labels or task.labels) or kind.classes(where[TRAIN], columns[TRAIN])
    splits = {name: kind.examples(where[name], name, part, names) for name, part in columns.items()}
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


def sources_of(task: TaskSection) -> dict[str, str]:
    """Return the file or split that each of the task's splits is read from."""
    sources = {TRAIN: task.train, VALIDATION: task.validation or task.train, **task.more_validation}
    return {**sources, TEST: task.test} if task.test is not None else sources
