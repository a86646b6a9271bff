"""A model and its tokenizer, made ready for a task."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sparse_pretrain.checkpoint.folder import model_path, one_line, read_config
from sparse_pretrain.checkpoint.quiet import quiet_libraries
from sparse_pretrain.errors import UserError
from sparse_pretrain.finetune.kinds import kind_of
from sparse_pretrain.finetune.recipe import Kind, TaskSection
from sparse_pretrain.models.loading import DROPOUT_KEYS, LARGEST_VOCABULARY_PADDING

PROBLEM_TYPES: dict[Kind, Any] = {
    "regression": "regression",
    "classification": "single_label_classification",
}
USUAL_POSITIONS = 512
# Families whose positions are counted as RoBERTa's are.
BEHIND_PADDING = {"roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet"}


def load_task_model(
    source: str | Path,
    task: TaskSection,
    labels: Sequence[str],
    dropout: float | None = None,
    new_head: bool = True,
) -> PreTrainedModel:
    """Return the model of a task in fp32, on the GPU if there is one.

    Its class is the one of the task's kind, its head new where the source has none; for sentences that are encoded
    separately a bare encoder.

    Args:
        source: release, model folder or hub name.
        task: tells kind and encoding.
        labels: class names in the order of their numbers; empty for a regression.
        dropout: every dropout of the model; None: its own.
        new_head: False refuses a source without a head for the task.

    Raises:
        UserError: not loadable, or weights of the encoder are missing or have other shapes, or those of the head
            when it must not be new.
    """
    path = model_path(source)
    config = read_config(path)
    config.problem_type = PROBLEM_TYPES.get(task.kind)
    # Question answering has two outputs, start and end.
    names = list(labels) or (["start", "end"] if task.kind == "span" else ["score"])
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
    if dropout is not None:
        config.update(
            {
                key: dropout
                for key in (*DROPOUT_KEYS, "seq_classif_dropout", "qa_dropout")
                if hasattr(config, key)
            }
        )
    factory: Any = getattr(transformers, kind_of(task).factory)
    try:
        with quiet_libraries():
            model, loading = factory.from_pretrained(
                path,
                config=config,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:  # broken files raise whatever their format's library has
        raise UserError(f"{source}: does not load: {one_line(error)}") from None
    refuse_partial_encoder(model, loading, source)
    if not new_head and any(
        "pooler." not in str(name) for name in [*loading["missing_keys"], *loading["mismatched_keys"]]
    ):
        raise UserError(f"{source}: has no trained head for this task; fine-tune it first")
    return model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[no-any-return]


def refuse_partial_encoder(model: PreTrainedModel, loading: dict[str, Any], source: str | Path) -> None:
    """Let a head be new, never a part of the encoder (but the pooler, which masked-LM models have not)."""
    is_bare = not hasattr(model, model.base_model_prefix)
    prefix = "" if is_bare else f"{model.base_model_prefix}."
    mismatched = [entry[0] if isinstance(entry, tuple) else entry for entry in loading["mismatched_keys"]]
    for kind, names in (("missing", loading["missing_keys"]), ("of another shape", mismatched)):
        wrong = sorted(name for name in names if name.startswith(prefix) and "pooler." not in name)
        if wrong:
            raise UserError(
                f"{source}: {len(wrong)} weights of the encoder are {kind}, such as {wrong[0]}: "
                "config.json and weights do not belong together"
            )


def load_tokenizer(
    source: str | Path, config: PretrainedConfig, max_length: int, kind: Kind = "classification"
) -> PreTrainedTokenizerBase:
    """Return the source's tokenizer after checking that it belongs to the model.

    For `tokens`, whose words come one by one, RoBERTa's tokenizer is told that a space stands before each.

    Raises:
        UserError: none there, another vocabulary than the model's, no padding token, or `max_length`
            beyond the model's positions.
    """
    path = model_path(source)
    try:
        with quiet_libraries():
            tokenizer = AutoTokenizer.from_pretrained(path)
            # Without it "New", "York" are the tokens of "NewYork", which no text has. It is saved with the model.
            if kind == "tokens" and getattr(tokenizer, "add_prefix_space", None) is False:
                tokenizer = AutoTokenizer.from_pretrained(path, add_prefix_space=True)
    except Exception as error:  # tokenizers raises bare Exception on broken files
        raise UserError(f"{source}: no usable tokenizer ({one_line(error)})") from None
    size = len(tokenizer)
    if not size <= config.vocab_size <= size + LARGEST_VOCABULARY_PADDING:
        raise UserError(
            f"{source}: vocabulary mismatch: the tokenizer has {size} tokens, the model's embedding "
            f"{config.vocab_size} rows; use the tokenizer that the model was trained with"
        )
    if tokenizer.pad_token is None:
        raise UserError(f"{source}: the tokenizer has no padding token")
    positions = usable_positions(config)
    if max_length > positions:
        raise UserError(
            f"training.max_length = {max_length}: {source} has {positions} positions; use at most that"
        )
    return tokenizer


def usable_positions(config: PretrainedConfig) -> int:
    """Return the longest input of a model, in tokens; RoBERTa's positions start behind the padding id."""
    positions = int(getattr(config, "max_position_embeddings", 0))
    if positions < 1:  # positions are relative, and have no end
        return USUAL_POSITIONS
    return positions - (config.pad_token_id + 1 if config.model_type in BEHIND_PADDING else 0)
