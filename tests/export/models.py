"""Tiny fine-tuned models for the export tests: a sparse classifier whose answers differ between inputs."""

from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from sparse_pretrain.models.prunable import prunable_weights
from tests.finetune.models import SPARSITY, smallest_pruned
from tests.tiny_models import save_sparse, tiny_config


def classifier_folder(
    folder: Path, model_type: str = "bert", masks: bool = True, sparsity: float = SPARSITY
) -> PreTrainedModel:
    """Save a sparse classifier of three classes with its tokenizer (and mask file); return it."""
    torch.manual_seed(0)
    config = tiny_config(model_type, num_labels=3)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            # The default initialisation of 0.02 gives the same answer for every input, to seven digits.
            parameter.mul_(5.0)
    weights = {name: weight.detach() for name, weight in prunable_weights(model).items()}
    model.eval()
    save_sparse(model, smallest_pruned(weights, sparsity), folder, mask_file=masks)
    return model
