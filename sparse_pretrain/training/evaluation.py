"""Held-out masked-token loss and accuracy, the same number on any number of ranks."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from sparse_pretrain.data.batch import Batch
from sparse_pretrain.data.masking import IGNORED
from sparse_pretrain.distillation.losses import masked_language_loss
from sparse_pretrain.models.pretraining import Predictions
from sparse_pretrain.training.world import World


@torch.no_grad()
def evaluate(
    predict: Callable[[Batch], Predictions], batches: Iterable[Batch], world: World
) -> dict[str, float]:
    """Return `validation_mlm_loss` (nats per predicted token) and `validation_mlm_accuracy` in [0, 1].

    With pairs also `validation_nsp_accuracy`. Collective: every rank passes the same number of batches.
    """
    loss = correct = tokens = nsp_correct = rows = 0.0
    for batch in batches:
        moved = batch.to(world.device)
        predictions = predict(moved)
        loss += float(masked_language_loss(predictions.tokens, moved.labels))
        correct += hits(predictions.tokens, moved.labels)
        tokens += batch.counts.predicted
        if predictions.next_sentence is not None and moved.next_sentence_labels is not None:
            nsp_correct += hits(predictions.next_sentence, moved.next_sentence_labels)
            rows += float((moved.next_sentence_labels != IGNORED).sum())
    loss, correct, tokens, nsp_correct, rows = world.sum([loss, correct, tokens, nsp_correct, rows])
    metrics = {
        "validation_mlm_loss": loss / max(tokens, 1.0),
        "validation_mlm_accuracy": correct / max(tokens, 1.0),
    }
    if rows:
        metrics["validation_nsp_accuracy"] = nsp_correct / rows
    return metrics


def hits(logits: Tensor, labels: Tensor) -> float:
    """Count rows whose highest logit is the label; `IGNORED` rows never hit."""
    return float(((logits.argmax(dim=-1) == labels) & (labels != IGNORED)).sum())
