"""What a run reads, opened and checked before a process group or a file exists."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from sparse_pretrain.config.distillation import DistillationSection
from sparse_pretrain.config.model import Attention, ModelSection
from sparse_pretrain.config.pruning import CoupledStructure
from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.data.masking import TokenTable
from sparse_pretrain.data.shards import PreparedSplit
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import sha256_file
from sparse_pretrain.models.coupled import coupled_sets
from sparse_pretrain.models.loading import empty_model, load_config, supports_next_sentence
from sparse_pretrain.models.prunable import prunable_weights
from sparse_pretrain.pruning.structures.coupled import CoupledSet


@dataclass(frozen=True)
class Inputs:
    """Data, tokenizer and architectures of a run.

    `prunable` are the shapes of the weights to prune, in the model's order; `coupled` the heads and channels
    among them, where the recipe prunes those.
    """

    train: PreparedSplit
    validation: PreparedSplit
    tokenizer: PreTrainedTokenizerBase
    table: TokenTable
    config: PretrainedConfig
    teacher_config: PretrainedConfig | None
    next_sentence: bool
    prunable: dict[str, torch.Size]
    coupled: list[CoupledSet]


def open_inputs(recipe: TrainRecipe) -> Inputs:
    """Open data and architectures and check that they fit each other.

    Raises:
        UserError: with the first thing that does not fit.
    """
    train = PreparedSplit(recipe.data.path, "train")
    validation = PreparedSplit(recipe.data.path, "validation")
    manifest = train.manifest
    tokenizer = open_tokenizer(recipe.data.path / "tokenizer", manifest.vocabulary_size)
    config = load_config(recipe.model, manifest.vocabulary_size)
    check_positions(config, manifest.sequence_length)
    teacher_config = None
    if recipe.distillation is not None:
        teacher_config = load_config(teacher_section(recipe.distillation, recipe.model.attention), None)
        if teacher_config.vocab_size != config.vocab_size:
            raise UserError(
                f"distillation.teacher = {recipe.distillation.teacher!r}: its vocabulary has "
                f"{teacher_config.vocab_size} tokens, the student's {config.vocab_size}; they must be the same"
            )
    table = TokenTable.of(tokenizer, manifest.special_tokens, manifest.vocabulary_size)
    next_sentence = train.has_pairs and supports_next_sentence(config)
    student = empty_model(config, next_sentence)
    weights = (
        prunable_weights(student, recipe.pruning.include, recipe.pruning.exclude) if recipe.pruning else {}
    )
    prunable = {name: weight.shape for name, weight in weights.items()}
    coupled: list[CoupledSet] = []
    if recipe.pruning is not None and isinstance(recipe.pruning.structure, CoupledStructure):
        coupled = coupled_sets(student, prunable, recipe.pruning.structure.of)
    return Inputs(
        train, validation, tokenizer, table, config, teacher_config, next_sentence, prunable, coupled
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


def check_positions(config: PretrainedConfig, length: int) -> None:
    """Refuse rows that are longer than the model's position embeddings."""
    positions = getattr(config, "max_position_embeddings", None)
    # RoBERTa's numbering starts behind the pad token's id.
    spare = (
        (config.pad_token_id or 0) + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 0
    )
    if positions is not None and length > positions - spare:
        raise UserError(
            f"data.path: rows have {length} tokens, the model has {positions - spare} positions; prepare the "
            f"data with sequence_length={positions - spare} or less"
        )


def teacher_section(section: DistillationSection, attention: Attention) -> ModelSection:
    """Return the model section that means the teacher."""
    return ModelSection(source=section.teacher, dropout=0.0, attention=attention)


def teacher_identity(recipe: TrainRecipe) -> str | None:
    """Return what a resumed run compares: the hash of a local teacher's weights, else its name."""
    if recipe.distillation is None:
        return None
    weights = Path(recipe.distillation.teacher) / "model.safetensors"
    return sha256_file(weights) if weights.is_file() else recipe.distillation.teacher
