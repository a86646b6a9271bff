"""The projection on the vocabulary on CPUs: its slow twin is `nn.Linear`."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForMaskedLM

from sparse_pretrain.models.cpu_projection import CpuProjection, quicken_projection


@pytest.mark.parametrize("frozen", ["nothing", "weight", "input"])
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_gradients_are_the_linear_layers(bias: bool, frozen: str) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(8, 50, bias=bias)
    plain.weight.requires_grad_(frozen != "weight")
    quick = copy.deepcopy(plain)
    quick.__class__ = CpuProjection
    results = []
    for layer in (plain, quick):
        hidden = torch.randn(7, 8, generator=torch.Generator().manual_seed(1))
        hidden.requires_grad_(frozen != "input")
        logits = layer(hidden)
        logits.square().sum().backward()
        results.append([logits, hidden.grad, *(weight.grad for weight in layer.parameters())])
    for mine, theirs in zip(*results, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None:
            torch.testing.assert_close(mine, theirs)
    gradient = quick.weight.grad
    assert gradient is None or gradient.is_contiguous()


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "roberta"])
def test_every_familys_projection_is_found_and_stays_tied(model_type: str) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    small = (
        {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64} if model_type == "distilbert" else sizes
    )
    model = AutoModelForMaskedLM.from_config(AutoConfig.for_model(model_type, vocab_size=100, **small))
    quicken_projection(model)
    assert type(model.get_output_embeddings()) is CpuProjection
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
