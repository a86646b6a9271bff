"""Kinds of task, one file each: how examples are read, encoded, predicted and scored."""

from sparse_pretrain.finetune.kinds.base import TaskKind
from sparse_pretrain.finetune.kinds.choice import Choice
from sparse_pretrain.finetune.kinds.sentence import Classification, Regression
from sparse_pretrain.finetune.kinds.span import Span
from sparse_pretrain.finetune.kinds.tokens import Tokens
from sparse_pretrain.finetune.recipe import Kind, TaskSection

KINDS: dict[Kind, type[TaskKind]] = {
    "classification": Classification,
    "regression": Regression,
    "tokens": Tokens,
    "choice": Choice,
    "span": Span,
}


def kind_of(task: TaskSection) -> TaskKind:
    """Return what knows the task's kind."""
    return KINDS[task.kind](task)
