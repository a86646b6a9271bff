"""The module that the engine wraps: encoder, then heads where a loss needs them."""

from typing import NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedModel

from sparse_pretrain.data.batch import Batch
from sparse_pretrain.models.heads import head_of


class Predictions(NamedTuple):
    """What a model says of a batch.

    Attributes:
        tokens: logits [positions, vocabulary] at the batch's positions.
        next_sentence: logits [rows, 2]; None when the batch has no pairs.
    """

    tokens: Tensor
    next_sentence: Tensor | None


class PretrainingModel(nn.Module):
    """A Hugging Face masked-language model whose forward returns logits at chosen positions only."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self._head = head_of(model)
        self._takes_types = model.config.model_type in ("bert", "electra", "albert", "deberta-v2")

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        positions: Tensor,
        next_sentence: bool,
    ) -> Predictions:
        """Run the encoder and the heads; shapes as in `Batch` and `Predictions`."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None and self._takes_types:
            inputs["token_type_ids"] = token_type_ids
        if self._head is None:
            output = self.model(**inputs)
            logits = output.logits
            return Predictions(logits.reshape(-1, logits.shape[-1])[positions], None)
        encoded = getattr(self.model, self.model.base_model_prefix)(**inputs)
        hidden = encoded.last_hidden_state
        chosen = hidden.reshape(-1, hidden.shape[-1])[positions]
        relation = None
        # Looked up here: a second attribute would make ZeRO-3 hook the head twice.
        relation_head = getattr(getattr(self.model, "cls", None), "seq_relationship", None)
        if next_sentence and relation_head is not None:
            relation = relation_head(encoded.pooler_output)
        return Predictions(self._head(self.model, chosen), relation)


def arguments(batch: Batch) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor, bool]:
    """Return what `PretrainingModel.forward` takes of a batch."""
    has_labels = batch.next_sentence_labels is not None
    return batch.input_ids, batch.attention_mask, batch.token_type_ids, batch.positions, has_labels
