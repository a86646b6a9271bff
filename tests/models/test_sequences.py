"""A row of several sequences answers as each of them does in a row of its own."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForPreTraining

from sparse_pretrain.data.batch import Sequences, find_sequences
from sparse_pretrain.data.ragged import Ragged
from sparse_pretrain.errors import UserError
from sparse_pretrain.models.cpu_attention import SLOTS_WORTH_A_CALL, blocks_of, register
from sparse_pretrain.models.pretraining import PretrainingModel
from sparse_pretrain.models.sequences import FAMILIES, check_family

VOCABULARY = 65
WIDTHS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
SIZES: dict[str, dict[str, Any]] = {
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48},
    "albert": {**WIDTHS, "embedding_size": 16},
}
# Rows by the lengths of their sequences; the second has padding, and a run of short ones too long for one call.
# The last two are one sequence each.
ROWS = [[40, 200], [30, 70, 20, 50, 40], [240], [240]]
LENGTH = 240


def model_of(model_type: str, attention: str, factory: Any = AutoModelForMaskedLM) -> PretrainingModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "max_position_embeddings": 260, **SIZES.get(model_type, WIDTHS)}
    config = AutoConfig.for_model(model_type, **sizes)
    return PretrainingModel(factory.from_config(config, attn_implementation=attention).eval())


def packed() -> tuple[Tensor, Tensor, Sequences]:
    """Tokens [rows, length], the mask of real ones, and where sequences stand."""
    lengths = np.array([sum(row) for row in ROWS])
    starts = Ragged(
        np.cumsum([0, *map(len, ROWS)]), np.concatenate([np.cumsum([0, *row[:-1]]) for row in ROWS])
    )
    tokens = torch.randint(5, VOCABULARY, (len(ROWS), LENGTH), generator=torch.Generator().manual_seed(1))
    real = torch.arange(LENGTH) < torch.from_numpy(lengths)[:, None]
    return tokens.where(real, 0), real.long(), find_sequences(starts, lengths, LENGTH)


def alone(tokens: Tensor) -> list[Tensor]:
    """Each sequence as a row of its own."""
    return [
        part[None]
        for row, lengths in zip(tokens, ROWS, strict=True)
        for part in row[: sum(lengths)].split(lengths)
    ]


@pytest.mark.parametrize("attention", ["ours", "sdpa", "eager"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_logits_and_gradients_are_those_of_the_sequences_alone(model_type: str, attention: str) -> None:
    model = model_of(model_type, register() if attention == "ours" else attention)
    tokens, real, sequences = packed()
    positions = real.flatten().nonzero().squeeze(1)
    together = model(tokens, real, None, positions, False, sequences).tokens
    weights = torch.randn(together.shape, generator=torch.Generator().manual_seed(2))
    (together * weights).sum().backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    parts = [model(one, None, None, torch.arange(one.numel()), False).tokens for one in alone(tokens)]
    expected = torch.cat(parts)
    (expected * weights).sum().backward()
    torch.testing.assert_close(together, expected, rtol=1e-4, atol=1e-5)
    for name, weight in model.named_parameters():
        if weight.grad is not None:
            scale = max(1.0, float(weight.grad.abs().max()))
            torch.testing.assert_close(gradients[name] / scale, weight.grad / scale, rtol=1e-4, atol=2e-5)


def test_every_sequence_has_its_own_relation() -> None:
    model = model_of("bert", register(), AutoModelForPreTraining)
    tokens, real, sequences = packed()
    with torch.no_grad():
        together = model(tokens, real, None, torch.zeros(1).long(), True, sequences).next_sentence
        found = [model(one, None, None, torch.zeros(1).long(), True).next_sentence for one in alone(tokens)]
        assert len(together) == sum(map(len, ROWS))
        torch.testing.assert_close(together, torch.cat(found), rtol=0, atol=1e-5)
        # And without sequences again a row's.
        assert len(model(tokens, real, None, torch.zeros(1).long(), True).next_sentence) == len(ROWS)


def test_attention_maps_and_hidden_states_know_no_other_sequence() -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model("bert", vocab_size=VOCABULARY, **WIDTHS)
    model = AutoModelForMaskedLM.from_config(config, attn_implementation="eager").eval()
    from sparse_pretrain.models.pretraining import HiddenTap, Taps

    wrapped = PretrainingModel(model, Taps((HiddenTap(1),), (2,)))
    tokens, real, sequences = packed()
    found = wrapped(tokens, real, None, torch.zeros(1).long(), False, sequences)
    others = sequences.numbers[:, :, None] != sequences.numbers[:, None, :]
    assert not found.attention[2][others[:, None].expand_as(found.attention[2])].any()
    first = wrapped(tokens[:1, :40], None, None, torch.zeros(1).long(), False)
    torch.testing.assert_close(found.attention[2][0, :, :40, :40], first.attention[2][0], rtol=0, atol=1e-5)
    torch.testing.assert_close(
        found.hidden[HiddenTap(1)][0, :40], first.hidden[HiddenTap(1)][0], rtol=0, atol=1e-5
    )


def test_dropout_drops_inside_blocks() -> None:
    model = model_of("bert", register()).train()
    tokens, real, sequences = packed()
    positions = torch.arange(50)
    torch.manual_seed(3)
    first = model(tokens, real, None, positions, False, sequences).tokens
    torch.manual_seed(3)
    again = model(tokens, real, None, positions, False, sequences).tokens
    other = model(tokens, real, None, positions, False, sequences).tokens
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_short_neighbours_share_a_call_and_no_block_leaves_its_row() -> None:
    _, _, sequences = packed()
    blocks = blocks_of(sequences.bounds, LENGTH, torch.float32)
    assert [block[:4] for block in blocks] == [
        (0, 1, 0, 40),
        (0, 1, 40, 240),
        (1, 2, 0, 120),
        (1, 2, 120, 240),
        (2, 4, 0, 240),
    ]
    assert [block.mask is None for block in blocks] == [True, True, False, False, True]
    assert all(block.end - block.start <= SLOTS_WORTH_A_CALL for block in blocks if block.mask is not None)


def test_other_architectures_are_refused_in_one_line() -> None:
    config = AutoConfig.for_model("deberta-v2", **WIDTHS)
    with pytest.raises(
        UserError, match=r"deberta-v2, can't keep them apart .* format=pairs or format=packed"
    ):
        check_family(config)
