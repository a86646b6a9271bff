"""Models by name, folder or from scratch, always as a masked-language model (with NSP where asked)."""

import copy
import difflib
import logging
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    PretrainedConfig,
    PreTrainedModel,
)

from sparse_pretrain.config.model import ModelSection
from sparse_pretrain.errors import UserError
from sparse_pretrain.models.cpu_attention import register
from sparse_pretrain.models.known import KNOWN_ARCHITECTURES

# What every library calls the same thing.
DROPOUT_KEYS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout")
# Vocabularies are padded for the hardware's tiles; more spare rows than this mean another tokenizer.
LARGEST_VOCABULARY_PADDING = 127


def load_config(
    section: ModelSection, vocabulary_size: int | None, planning: bool = False
) -> PretrainedConfig:
    """Return the architecture a recipe means.

    Args:
        section: the recipe's model section.
        vocabulary_size: of the prepared data; sets the size of models from scratch, checked otherwise.
        planning: when the source cannot be reached (yet), take the section's `architecture`, or what is
            known here of the paper's models.

    Raises:
        UserError: unknown source or architecture, or a vocabulary that does not fit the data.
    """
    settings: dict[str, Any] = dict(section.config)
    if section.source is None:
        settings.setdefault("vocab_size", vocabulary_size or 30522)
        config = config_from(settings)
    else:
        config = planned_config(section) if planning else config_of_source(section.source)
        unknown = [key for key in settings if not hasattr(config, key)]
        if unknown:
            raise UserError(f"model.config.{unknown[0]}: {section.source} has no such key in its config")
        config.update(settings)
    if section.dropout is not None:
        config.update({key: section.dropout for key in DROPOUT_KEYS if hasattr(config, key)})
    if vocabulary_size is not None:
        check_vocabulary(config.vocab_size, vocabulary_size, section.source or "the model from scratch")
    return config


def config_from(settings: dict[str, Any]) -> PretrainedConfig:
    """Build a config from plain keys, `model_type` among them."""
    settings = dict(settings)
    model_type = settings.pop("model_type")
    if model_type not in CONFIG_MAPPING:
        near = difflib.get_close_matches(str(model_type), CONFIG_MAPPING.keys(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "for example 'bert'"
        raise UserError(f"model.config.model_type = {model_type!r}: no such architecture; {hint}")
    try:
        return AutoConfig.for_model(model_type, **settings)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise UserError(f"model.config: {one_line(error)}") from None


def config_of_source(source: str) -> PretrainedConfig:
    """Read the config of a name or folder."""
    if not Path(source).exists() and not could_be_hub_name(source):
        raise UserError(unreachable(source))
    # Else five retries announce themselves before the one line below.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(source)
    except (OSError, ValueError, StrictDataclassError):
        raise UserError(unreachable(source)) from None
    return config


def could_be_hub_name(source: str) -> bool:
    """Say whether a source that is no folder here could be `model` or `owner/model` on the hub."""
    return source.count("/") <= 1 and not source.startswith(("/", ".", "~"))


def one_line(error: Exception) -> str:
    """Return a library's message on one line, cut where it stops being readable."""
    return " ".join(str(error).split())[:300]


def planned_config(section: ModelSection) -> PretrainedConfig:
    """Return the config of the source, or of what it will derive from, without needing a network."""
    candidates = [name for name in (section.source, section.architecture) if name is not None]
    for name in candidates:
        if Path(name).exists():
            return config_of_source(name)
        if name in KNOWN_ARCHITECTURES:
            return config_from(KNOWN_ARCHITECTURES[name])
    return config_of_source(candidates[-1])


def unreachable(source: str) -> str:
    """Say why a source could not be loaded, as far as the file system tells."""
    if Path(source).exists():
        return f"model source {source}: the folder holds no usable config.json and weights"
    if not could_be_hub_name(source):
        return f"model source {source}: no such folder"
    return f"model source {source}: no such folder, and no such model on the hub (or the hub is unreachable)"


def check_vocabulary(model_size: int, data_size: int, who: str) -> None:
    """Refuse a model whose embedding does not belong to the data's tokenizer."""
    if not data_size <= model_size <= data_size + LARGEST_VOCABULARY_PADDING:
        raise UserError(
            f"vocabulary mismatch: {who} has {model_size} tokens, the prepared data's tokenizer has {data_size}; "
            "prepare the data with the model's own tokenizer"
        )


def build_model(config: PretrainedConfig, section: ModelSection, next_sentence: bool) -> PreTrainedModel:
    """Return the model in fp32 on the CPU, with pre-trained weights or fresh ones (torch's global RNG).

    Raises:
        UserError: the weights cannot be loaded.
    """
    factory = model_factory(next_sentence)
    if section.source is None or not section.pretrained:
        model: PreTrainedModel = factory.from_config(config, attn_implementation=attention_of(section))
        return model
    return load_weights(factory, section.source, config, attention_of(section))


def model_factory(next_sentence: bool) -> Any:
    """Return the Auto class: with the next-sentence head, or with the masked-language head alone."""
    return AutoModelForPreTraining if next_sentence else AutoModelForMaskedLM


def load_weights(
    factory: Any, source: str, config: PretrainedConfig | None, attention: str
) -> PreTrainedModel:
    """Load pre-trained weights as fp32."""
    try:
        model: PreTrainedModel = factory.from_pretrained(
            source, config=config, attn_implementation=attention, dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{unreachable(source)}: {one_line(error)}") from None
    return model


def empty_model(config: PretrainedConfig, next_sentence: bool) -> PreTrainedModel:
    """Return the model on the meta device: shapes and names, no values.

    Raises:
        UserError: the architecture's sizes do not fit each other.
    """
    factory = model_factory(next_sentence)
    try:
        with torch.device("meta"):
            model: PreTrainedModel = factory.from_config(copy.deepcopy(config))
    except (ValueError, TypeError) as error:
        raise UserError(f"model.config: {one_line(error)}") from None
    return model


def attention_of(section: ModelSection) -> str:
    """Return the attention implementation for this hardware."""
    if section.attention != "auto":
        return section.attention
    return "sdpa" if torch.cuda.is_available() else register()


def supports_next_sentence(config: PretrainedConfig) -> bool:
    """Say whether the architecture has a next-sentence head (BERT has; DistilBERT and RoBERTa have not)."""
    return bool(config.model_type == "bert")
