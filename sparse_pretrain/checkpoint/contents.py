"""What a pre-training checkpoint means, whatever its files look like."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from sparse_pretrain.pruning.masks import MaskSet


@dataclass(frozen=True)
class CheckpointModel:
    """The model of a checkpoint, put together from its shards.

    Attributes:
        weights: fp32 masters by Hugging Face parameter name, dense (masks are not applied), and buffers;
            a tied weight appears once, under its first name.
        masks: True where a weight is kept; None when the run did not prune.
        model_folder: holds the Hugging Face `config.json` and the tokenizer's files.
        step: optimizer steps done.
        recipe: the run's resolved recipe.
        data_fingerprint: of the prepared data.
        metrics: of the last evaluation, such as `validation_mlm_loss` (nats a token).
        versions: of the libraries that wrote it.
    """

    weights: dict[str, Tensor]
    masks: MaskSet | None
    model_folder: Path
    step: int
    recipe: dict[str, Any] = field(default_factory=dict)
    data_fingerprint: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
