"""Tiny fine-tuned models for the export tests: a sparse classifier whose answers differ between inputs."""

from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from sparse_pretrain.models.prunable import prunable_weights
from sparse_pretrain.pruning.masks import MASK_FILE
from tests.finetune.models import SPARSITY, smallest_pruned, tiny_config
from tests.tiny import tiny_tokenizer


def classifier_folder(
    folder: Path, model_type: str = "bert", masks: bool = True, sparsity: float = SPARSITY
) -> PreTrainedModel:
    """Save a sparse classifier of three classes with its tokenizer (and mask file); return it."""
    torch.manual_seed(0)
    config = tiny_config(model_type)
    config.num_labels = 3
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            # The default initialisation of 0.02 gives the same answer for every input, to seven digits.
            parameter.mul_(5.0)
        weights = prunable_weights(model)
        chosen = smallest_pruned({name: weight.detach() for name, weight in weights.items()}, sparsity)
        for name, weight in weights.items():
            weight.mul_(chosen[name])
            weight[weight == 0] = 0.0
    model.eval()
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    if masks:
        chosen.save(folder / MASK_FILE)
    return model
