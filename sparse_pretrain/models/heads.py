"""The masked-language-model head of each family, applied to chosen positions only.

The head is a quarter of a full BERT-base step when it runs at every position; most positions of
teacher preparation need no logits.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

Head = Callable[[Any, Tensor], Tensor]


def bert_head(model: Any, hidden: Tensor) -> Tensor:
    """Apply BERT's `cls.predictions`: hidden [positions, hidden] -> logits [positions, vocabulary]."""
    return model.cls.predictions(hidden)  # type: ignore[no-any-return]


def distilbert_head(model: Any, hidden: Tensor) -> Tensor:
    """Apply DistilBERT's transform, activation, LayerNorm and projector."""
    return model.vocab_projector(  # type: ignore[no-any-return]
        model.vocab_layer_norm(model.activation(model.vocab_transform(hidden)))
    )


def roberta_head(model: Any, hidden: Tensor) -> Tensor:
    """Apply RoBERTa's `lm_head`."""
    return model.lm_head(hidden)  # type: ignore[no-any-return]


HEADS: dict[str, Head] = {
    "bert": bert_head,
    "distilbert": distilbert_head,
    "roberta": roberta_head,
    "xlm-roberta": roberta_head,
    "camembert": roberta_head,
}


def head_of(model: PreTrainedModel) -> Head | None:
    """Return the head function of the model's family, or None when the family is not known."""
    return HEADS.get(model.config.model_type)
