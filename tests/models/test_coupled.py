"""Heads and channels of every family, found by name; and that they are what they claim to be."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedModel

from sparse_pretrain.errors import UserError
from sparse_pretrain.models.coupled import coupled_sets
from sparse_pretrain.models.prunable import prunable_weights
from sparse_pretrain.pruning.structures.coupled import Coupled

WIDTHS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
DISTIL = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
DEBERTA = {**WIDTHS, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 8}
# Family: settings, layers with weights of their own, members of a head set.
FAMILIES: dict[str, tuple[dict[str, Any], int, int]] = {
    "bert": (WIDTHS, 2, 4),
    "roberta": (WIDTHS, 2, 4),
    "distilbert": (DISTIL, 2, 4),
    "electra": (WIDTHS, 2, 4),
    "albert": (WIDTHS, 1, 4),
    "deberta-v2": (DEBERTA, 2, 6),
}


def tiny(model_type: str) -> PreTrainedModel:
    torch.manual_seed(0)
    settings = FAMILIES[model_type][0] if model_type in FAMILIES else WIDTHS
    config = AutoConfig.for_model(model_type, vocab_size=65, max_position_embeddings=64, **settings)
    model: PreTrainedModel = AutoModelForMaskedLM.from_config(config, attn_implementation="eager")
    model.eval()
    return model


@pytest.mark.parametrize("model_type", FAMILIES)
def test_families(model_type: str) -> None:
    model = tiny(model_type)
    _, layers, head_members = FAMILIES[model_type]
    found = coupled_sets(model, prunable_weights(model))
    assert [coupled.name.rsplit(".", 1)[1] for coupled in found] == ["heads", "channels"] * layers
    heads, channels = found[0], found[1]
    assert (heads.groups, len(heads.members)) == (4, head_members)
    assert (channels.groups, len(channels.members)) == (48, 2)
    assert [member.axis for member in heads.members] == [0] * (head_members - 1) + [1]
    order = [name for name, _ in model.named_parameters()]
    for coupled in found:
        places = [order.index(member.weight) for member in coupled.members]
        assert places == sorted(places)


@pytest.mark.parametrize("model_type", FAMILIES)
@torch.no_grad()
def test_a_pruned_group_has_no_influence_left(model_type: str) -> None:
    """With a group's columns zero, random values in its rows and biases must change no output."""
    model = tiny(model_type)
    weights = prunable_weights(model)
    sets = coupled_sets(model, weights)
    parameters = dict(model.named_parameters())
    for parameter in parameters.values():
        if parameter.ndim == 1:
            parameter.add_(torch.rand_like(parameter))
    inputs = torch.randint(5, 65, (2, 9))
    dense = model(inputs).logits
    structure = Coupled(sets)
    masks: dict[str, torch.Tensor] = {}
    for unit in structure.units({name: weight.shape for name, weight in weights.items()}):
        masks |= structure.expand(unit, torch.arange(unit.groups) % 2 == 0)
    for name, mask in masks.items():
        parameters[name].mul_(mask)
    pruned = model(inputs).logits
    assert not torch.allclose(pruned, dense, atol=1e-3)
    for member in (member for coupled in sets for member in coupled.members if member.axis == 0):
        lost = ~masks[member.weight]
        parameters[member.weight].add_(torch.randn_like(parameters[member.weight]) * lost)
        bias = parameters.get(member.weight.replace(".weight", ".bias"))
        if bias is not None:
            bias.add_(torch.randn_like(bias) * lost[:, 0])
    torch.testing.assert_close(model(inputs).logits, pruned, rtol=0, atol=1e-5)


def test_only_heads_or_only_channels() -> None:
    model = tiny("bert")
    names = list(prunable_weights(model, exclude=[r"(intermediate|layer\.\d\.output)\.dense"]))
    found = coupled_sets(model, names, ["heads"])
    assert [coupled.name for coupled in found] == [f"bert.encoder.layer.{layer}.heads" for layer in (0, 1)]
    with pytest.raises(UserError, match=r"leave none prunable; change them, or leave channels out of"):
        coupled_sets(model, names)


def test_layers_that_stay_dense_as_a_whole_are_left_out() -> None:
    model = tiny("roberta")
    found = coupled_sets(model, prunable_weights(model, exclude=[r"layer\.0\."]))
    assert [coupled.name for coupled in found] == [
        f"roberta.encoder.layer.1.{kind}" for kind in ("heads", "channels")
    ]


def test_half_a_set_is_refused_by_name() -> None:
    model = tiny("bert")
    names = prunable_weights(model, exclude=[r"layer\.1\.attention\.self\.key"])
    with pytest.raises(
        UserError, match=r"layer\.1\.heads .*layer\.1\.attention\.self\.key\.weight is not prunable"
    ):
        coupled_sets(model, names)


def test_unknown_models_are_refused() -> None:
    """DeBERTa v1 keeps query, key and value of all heads in one matrix."""
    model = tiny("deberta")
    with pytest.raises(UserError, match="no attention heads found in a model of type deberta"):
        coupled_sets(model, prunable_weights(model))
    assert len(coupled_sets(model, prunable_weights(model), ["channels"])) == 2
