"""What a run reads, opened and checked before a process group or a file exists."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.data.masking import TokenTable
from sparse_pretrain.data.mix import AnySplit, open_split
from sparse_pretrain.distillation.matching import Match, match_teachers
from sparse_pretrain.errors import UserError
from sparse_pretrain.models.loading import empty_model, load_config, supports_next_sentence
from sparse_pretrain.models.sequences import check_family, first_position
from sparse_pretrain.pruning.structures.coupled import CoupledSet
from sparse_pretrain.training.pruning_inputs import find_prunable
from sparse_pretrain.training.stored_teacher import check_stored_logits
from sparse_pretrain.training.teacher_inputs import open_teachers


@dataclass(frozen=True)
class Inputs:
    """Data, tokenizer and architectures of a run.

    Attributes:
        train: rows to train on.
        validation: held-out rows.
        tokenizer: of the data.
        table: what masking knows of its vocabulary.
        config: the student's architecture.
        teacher_configs: the teachers', in the recipe's order; none with stored logits.
        matches: what the student compares with each teacher beside logits.
        next_sentence: the student has a next-sentence head to train.
        prunable: shapes of the weights to prune, in the model's order.
        coupled: heads and channels among them, where the recipe prunes those.
    """

    train: AnySplit
    validation: AnySplit
    tokenizer: PreTrainedTokenizerBase
    table: TokenTable
    config: PretrainedConfig
    teacher_configs: tuple[PretrainedConfig, ...]
    matches: tuple[Match, ...]
    next_sentence: bool
    prunable: dict[str, torch.Size]
    coupled: list[CoupledSet]


def open_inputs(recipe: TrainRecipe) -> Inputs:
    """Open data and architectures and check that they fit each other.

    Raises:
        UserError: with the first thing that does not fit.
    """
    train = open_split(recipe.data, "train")
    validation = open_split(recipe.data, "validation")
    manifest = train.manifest
    tokenizer = open_tokenizer(recipe.data.folders[0] / "tokenizer", manifest.vocabulary_size)
    config = load_config(recipe.model, manifest.vocabulary_size)
    check_positions(config, manifest.sequence_length)
    if manifest.has_sequences:
        check_family(config)
    check_stored_logits(recipe, manifest.fingerprint, config.vocab_size)
    teachers = open_teachers(recipe, config, tokenizer)
    for teacher in teachers:
        check_positions(teacher, manifest.sequence_length, "the teacher")
        if manifest.has_sequences:
            check_family(teacher, "the teacher")
    section = recipe.distillation
    matches = match_teachers(section, config, teachers) if section is not None else ()
    table = TokenTable.of(tokenizer, manifest.special_tokens, manifest.vocabulary_size)
    next_sentence = train.has_pairs and supports_next_sentence(config)
    prunable = find_prunable(recipe.pruning, empty_model(config, next_sentence))
    return Inputs(
        train,
        validation,
        tokenizer,
        table,
        config,
        teachers,
        matches,
        next_sentence,
        prunable.shapes,
        prunable.coupled,
    )


def open_tokenizer(folder: Path, vocabulary_size: int) -> PreTrainedTokenizerBase:
    """Load the tokenizer that the data was made with.

    Raises:
        UserError: it is missing, or not the one that the data's manifest describes.
    """
    try:
        # A missing folder must not be looked for on the hub.
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError):
        raise UserError(f"{folder}: no usable tokenizer; prepare the data again") from None
    if len(tokenizer) != vocabulary_size:
        raise UserError(
            f"vocabulary mismatch: {folder} has {len(tokenizer)} tokens, the data's manifest says "
            f"{vocabulary_size}; prepare the data again"
        )
    return tokenizer


def check_positions(config: PretrainedConfig, length: int, who: str = "the model") -> None:
    """Refuse rows that are longer than the model's position embeddings."""
    positions = getattr(config, "max_position_embeddings", None)
    spare = first_position(config)
    if positions is not None and length > positions - spare:
        raise UserError(
            f"data: rows have {length} tokens, {who} has {positions - spare} positions; prepare the "
            f"data with sequence_length={positions - spare} or less"
        )
