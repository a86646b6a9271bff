"""Tiny models with int8 layers whose ranges were observed on a few batches."""

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from sparse_pretrain.quantization.prepare import prepare_quantization, set_phase
from tests.tiny_models import tiny_config


def tiny(model_type: str = "bert") -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(tiny_config(model_type)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5.0)
    return model


def ids(rows: int = 4) -> torch.Tensor:
    return torch.randint(5, 60, (rows, 12), generator=torch.Generator().manual_seed(rows))


def calibrated(model_type: str = "bert") -> PreTrainedModel:
    model = tiny(model_type)
    prepare_quantization(model, 0.1)
    set_phase(model, observe=True, rounding=True)
    model.train()
    for rows in (4, 3, 5):
        model(input_ids=ids(rows))
    set_phase(model, observe=False, rounding=True)
    return model.eval()
