"""The head at chosen positions equals the model's own forward, in every family."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForPreTraining

from sparse_pretrain.models.pretraining import PretrainingModel
from sparse_pretrain.models.prunable import prunable_weights

SMALL = {"vocab_size": 65, "max_position_embeddings": 64}
WIDTHS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
DISTIL = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48}


@pytest.mark.parametrize(
    ("model_type", "widths", "factory"),
    [
        ("bert", WIDTHS, AutoModelForMaskedLM),
        ("bert", WIDTHS, AutoModelForPreTraining),
        ("distilbert", DISTIL, AutoModelForMaskedLM),
        ("roberta", WIDTHS, AutoModelForMaskedLM),
        # No head of its own in `heads.py`: the whole forward is run and indexed.
        ("electra", WIDTHS, AutoModelForMaskedLM),
    ],
)
def test_head_at_positions_equals_the_full_forward(
    model_type: str, widths: dict[str, Any], factory: Any
) -> None:
    torch.manual_seed(0)
    model = factory.from_config(AutoConfig.for_model(model_type, **SMALL, **widths)).eval()
    tokens = torch.randint(5, 65, (3, 16))
    mask = torch.ones_like(tokens)
    mask[1, 10:] = 0
    positions = torch.tensor([0, 5, 17, 22, 47])
    pairs = factory is AutoModelForPreTraining
    with torch.no_grad():
        found = PretrainingModel(model)(tokens, mask, None, positions, pairs)
        expected = model(input_ids=tokens, attention_mask=mask)
    logits = expected.prediction_logits if pairs else expected.logits
    torch.testing.assert_close(found.tokens, logits.reshape(-1, 65)[positions], rtol=0, atol=1e-5)
    if pairs:
        torch.testing.assert_close(found.next_sentence, expected.seq_relationship_logits, rtol=0, atol=1e-5)
    else:
        assert found.next_sentence is None


@pytest.mark.parametrize(
    ("model_type", "changes", "told_apart"),
    [
        ("bert", {}, True),
        # Families that nothing here names.
        ("megatron-bert", {}, True),
        ("roformer", {"embedding_size": 32}, True),
        # One segment: an id of 1 does not exist.
        ("bert", {"type_vocab_size": 1}, False),
        ("roberta", {"type_vocab_size": 1}, False),
        # No segments at all, and no argument for them.
        ("distilbert", DISTIL, False),
    ],
)
def test_segments_reach_every_model_that_tells_them_apart(
    model_type: str, changes: dict[str, Any], told_apart: bool
) -> None:
    torch.manual_seed(0)
    widths = {} if model_type == "distilbert" else WIDTHS
    config = AutoConfig.for_model(model_type, **SMALL, **widths, **changes)
    model = AutoModelForMaskedLM.from_config(config).eval()
    tokens, positions = torch.randint(5, 65, (2, 8)), torch.arange(16)
    types = torch.zeros_like(tokens)
    types[:, 4:] = 1
    wrapped = PretrainingModel(model)
    with torch.no_grad():
        without = wrapped(tokens, None, None, positions, False).tokens
        found = wrapped(tokens, None, types, positions, False).tokens
        expected = model(tokens, token_type_ids=types).logits.reshape(-1, 65) if told_apart else without
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert torch.equal(found, without) != told_apart


@pytest.mark.parametrize(
    ("model_type", "widths", "per_layer"),
    [("bert", WIDTHS, 6), ("distilbert", DISTIL, 6), ("roberta", WIDTHS, 6)],
)
def test_default_selection_is_every_linear_of_the_encoder(
    model_type: str, widths: dict[str, Any], per_layer: int
) -> None:
    model = AutoModelForMaskedLM.from_config(AutoConfig.for_model(model_type, **SMALL, **widths))
    names = list(prunable_weights(model))
    assert len(names) == 2 * per_layer
    assert not any(
        "embedding" in name or "lm_head" in name or "cls" in name or "vocab" in name for name in names
    )


def test_the_pooler_is_pruned_and_the_heads_are_not() -> None:
    model = AutoModelForPreTraining.from_config(AutoConfig.for_model("bert", **SMALL, **WIDTHS))
    names = list(prunable_weights(model))
    assert "bert.pooler.dense.weight" in names
    assert len(names) == 13


def test_expressions_choose() -> None:
    model = AutoModelForMaskedLM.from_config(AutoConfig.for_model("bert", **SMALL, **WIDTHS))
    names = list(prunable_weights(model, include=[r"attention\.self"], exclude=[r"layer\.1\."]))
    assert names == [
        f"bert.encoder.layer.0.attention.self.{part}.weight" for part in ("query", "key", "value")
    ]
