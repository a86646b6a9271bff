"""Rows of several sequences: attention stays inside each, and positions count from each one's start."""

from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from sparse_pretrain.data.batch import Sequences
from sparse_pretrain.errors import UserError
from sparse_pretrain.models import cpu_attention

# Their positions are arguments, and attention of their own they have none: it goes through Hugging Face's interface.
FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "albert")
# Their numbering of positions starts behind the pad token's id.
NUMBERED_FROM_PAD = ("roberta", "xlm-roberta", "camembert")


def first_position(config: PretrainedConfig) -> int:
    """Return the number of a sequence's first position."""
    return (config.pad_token_id or 0) + 1 if config.model_type in NUMBERED_FROM_PAD else 0


def check_family(config: PretrainedConfig, who: str = "the model") -> None:
    """Refuse an architecture that can't keep the sequences of a row apart.

    Raises:
        UserError: it is none of `FAMILIES`.
    """
    if config.model_type not in FAMILIES:
        raise UserError(
            f"data: rows hold several sequences, and {who}'s architecture, {config.model_type}, can't keep them apart "
            f"({', '.join(FAMILIES)} can); prepare the data with format=pairs or format=packed"
        )


def sequence_arguments(sequences: Sequences, model: PreTrainedModel) -> dict[str, Any]:
    """Return what a model's forward takes to keep the sequences of its rows apart, whichever attention it has."""
    bounds = sequences.bounds
    found: dict[str, Any] = {"position_ids": sequences.position_ids + first_position(model.config)}
    attention = model.config._attn_implementation
    if attention == cpu_attention.NAME:
        found["blocks"] = cpu_attention.blocks_of(bounds, sequences.position_ids.shape[1], model.dtype)
    elif attention.startswith("flash_attention"):
        found |= {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}
        found |= {"max_length_q": sequences.longest, "max_length_k": sequences.longest}
    else:
        same = same_sequence(sequences)
        found["attention_mask"] = same if attention == "sdpa" else additive(same, model.dtype)
    return found


def same_sequence(sequences: Sequences) -> Tensor:
    """Return bool [rows, 1, queries, keys]: both in one sequence, or both in the same row's padding."""
    numbers = sequences.numbers
    return numbers[:, None, :, None] == numbers[:, None, None, :]


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what is added to scores: 0 where attention is allowed, the lowest number elsewhere."""
    zeros = torch.zeros((), dtype=dtype, device=allowed.device)
    return torch.where(allowed, zeros, torch.finfo(dtype).min)
