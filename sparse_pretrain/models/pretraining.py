"""The module that the engine wraps: encoder, then heads where a loss needs them."""

from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparse_pretrain.data.batch import Batch, Sequences
from sparse_pretrain.models.compiled import compile_layers
from sparse_pretrain.models.cpu_dropout import quicken_dropout
from sparse_pretrain.models.cpu_linear import quicken_linear
from sparse_pretrain.models.cpu_projection import quicken_projection
from sparse_pretrain.models.heads import head_of
from sparse_pretrain.models.projections import PROJECTION_PREFIX
from sparse_pretrain.models.sequences import sequence_arguments


class HiddenTap(NamedTuple):
    """A hidden state to return.

    Attributes:
        layer: 0 is the embedding layer's output, i the output of encoder layer i.
        projection: name of the projection that it goes through; None for none.
    """

    layer: int
    projection: str | None = None


class Taps(NamedTuple):
    """Inner values that a forward pass returns beside logits; `attention` are layers, from 1."""

    hidden: tuple[HiddenTap, ...] = ()
    attention: tuple[int, ...] = ()


class Predictions(NamedTuple):
    """What a model says of a batch.

    Attributes:
        tokens: logits [positions, vocabulary] at the batch's positions.
        next_sentence: logits [sequences, 2]; None when the batch has no pairs.
        hidden: [rows, length, width] by tap.
        attention: probabilities [rows, heads, length (queries), length (keys)] by layer.
    """

    tokens: Tensor
    next_sentence: Tensor | None
    hidden: dict[HiddenTap, Tensor] = {}  # noqa: RUF012 - never written to
    attention: dict[int, Tensor] = {}  # noqa: RUF012


class PretrainingModel(nn.Module):
    """A Hugging Face masked-language model whose forward returns logits at chosen positions only.

    Args:
        model: the masked-language model.
        taps: inner values to return as well; attention needs the model's eager implementation.
        projections: linear maps by name, for the taps that name one. They are trained with the model and
            saved in checkpoints, but are no part of it.
        compiled: whether its layers go through `torch.compile` instead of the CPU's own kernels.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        taps: Taps | None = None,
        projections: nn.ModuleDict | None = None,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.projections = projections if projections is not None else nn.ModuleDict()
        self._taps = taps or Taps()
        self._head = head_of(model)
        self._takes_types = takes_token_types(self._called())
        self._firsts: Tensor | None = None
        if self._relation_head() is not None:
            pooler = self._called().get_submodule("pooler")
            pooler.register_forward_pre_hook(self._pooled_at_firsts)
        if compiled:
            compile_layers(model)
        elif not torch.cuda.is_available():
            quicken_dropout(model)
            quicken_projection(model)
            quicken_linear(model)

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Return all parameters: the model's under Hugging Face's own names, projections' under a prefix."""
        return {
            **dict(self.model.named_parameters()),
            **{PROJECTION_PREFIX + name: weight for name, weight in self.projections.named_parameters()},
        }

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        positions: Tensor,
        next_sentence: bool,
        sequences: Sequences | None = None,
    ) -> Predictions:
        """Run the encoder and the heads; shapes as in `Batch` and `Predictions`."""
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if sequences is not None:
            inputs |= {"attention_mask": None} | sequence_arguments(sequences, self.model)
        self._firsts = None if sequences is None else sequences.firsts
        if token_type_ids is not None and self._takes_types:
            inputs["token_type_ids"] = token_type_ids
        if self._taps.hidden:
            inputs["output_hidden_states"] = True
        if self._taps.attention:
            inputs["output_attentions"] = True
        if self._head is None:
            output = self._called()(**inputs)
            logits = output.logits
            tokens = logits.reshape(-1, logits.shape[-1])[positions]
            return Predictions(tokens, None, self._hidden(output), self._attention(output))
        encoded = self._called()(**inputs)
        hidden = encoded.last_hidden_state
        chosen = hidden.reshape(-1, hidden.shape[-1])[positions]
        relation = None
        relation_head = self._relation_head()
        if next_sentence and relation_head is not None:
            relation = relation_head(encoded.pooler_output)
        tokens = self._head(self.model, chosen)
        return Predictions(tokens, relation, self._hidden(encoded), self._attention(encoded))

    def _pooled_at_firsts(self, _pooler: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        # The pooler takes the first token of every row: give it each sequence as a row of its first token.
        if self._firsts is None:
            return None
        hidden, *others = arguments
        return (hidden.reshape(-1, hidden.shape[-1])[self._firsts].unsqueeze(1), *others)

    def _relation_head(self) -> nn.Module | None:
        # Looked up each time: a second attribute would make ZeRO-3 hook the head twice.
        return getattr(getattr(self.model, "cls", None), "seq_relationship", None)

    def _called(self) -> PreTrainedModel:
        # Looked up each time, as a head is: the encoder where the head runs apart, else the whole model.
        whole = self.model
        return whole if self._head is None else getattr(whole, whole.base_model_prefix)

    def _hidden(self, output: Any) -> dict[HiddenTap, Tensor]:
        states = {tap: output.hidden_states[tap.layer] for tap in self._taps.hidden}
        return {
            tap: state if tap.projection is None else self.projections[tap.projection](state)
            for tap, state in states.items()
        }

    def _attention(self, output: Any) -> dict[int, Tensor]:
        return {layer: output.attentions[layer - 1] for layer in self._taps.attention}


def takes_token_types(model: PreTrainedModel) -> bool:
    """Say whether a model tells segments apart: it has embeddings for two of them, and takes their ids.

    RoBERTa takes ids too, but knows only one segment: an id of 1 would lie outside its table.
    """
    segments = getattr(model.config, "type_vocab_size", None) or 0
    return segments > 1 and "token_type_ids" in signature(model.forward).parameters


def arguments(batch: Batch) -> tuple[Any, ...]:
    """Return what `PretrainingModel.forward` takes of a batch."""
    has_labels = batch.next_sentence_labels is not None
    inputs = (batch.input_ids, batch.attention_mask, batch.token_type_ids, batch.positions)
    return *inputs, has_labels, batch.sequences
