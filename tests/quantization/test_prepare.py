"""Which layers are rounded, when, and what is kept."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    GPT2ForSequenceClassification,
)

from sparse_pretrain.errors import UserError
from sparse_pretrain.files import read_json, write_json
from sparse_pretrain.quantization.layers import QuantizedEmbedding, QuantizedLinear
from sparse_pretrain.quantization.prepare import prepare_quantization, quantized_layers, set_phase
from sparse_pretrain.quantization.schedule import QuantizationSchedule
from sparse_pretrain.quantization.stored import (
    QUANTIZATION_FILE,
    load_quantization,
    save_quantization,
)
from tests.quantization.models import calibrated, ids, tiny

REQUANTIZED = {
    "bert": ["query", "key", "intermediate.dense", "pooler.dense"],
    "roberta": ["query", "key", "intermediate.dense"],
    "distilbert": ["q_lin", "k_lin", "lin1"],
}


@pytest.mark.parametrize("model_type", list(REQUANTIZED))
def test_the_papers_outputs_stay_in_floating_point_and_names_stay_as_they_are(model_type: str) -> None:
    model = tiny(model_type)
    names, linears = list(model.state_dict()), [m for m in model.modules() if isinstance(m, nn.Linear)]
    layers = prepare_quantization(model, 0.01)
    assert list(model.state_dict()) == names
    assert sum(isinstance(layer, QuantizedLinear) for layer in layers.values()) == len(linears)
    assert sum(isinstance(layer, QuantizedEmbedding) for layer in layers.values()) in (2, 3)
    rounded = {
        name
        for name, layer in layers.items()
        if isinstance(layer, QuantizedLinear) and layer.output_range is not None
    }
    assert rounded == {name for name in layers if name.endswith(tuple(REQUANTIZED[model_type]))} - {
        "classifier.dense"
    }
    before = tiny(model_type)(input_ids=ids()).logits
    assert torch.equal(model(input_ids=ids()).logits, before)  # no phase yet: nothing is rounded


def test_ranges_are_observed_then_rounded_to_then_stand_still() -> None:
    model = tiny().train()
    layers = prepare_quantization(model, 0.5)
    schedule = QuantizationSchedule(calibration_steps=2, freeze_step=3)
    first = layers["bert.encoder.layer.0.attention.self.query"]
    assert isinstance(first, QuantizedLinear)
    scales, rounds = [], []
    for step in range(5):
        state = type("State", (), {"global_step": step})()
        schedule.on_step_begin(None, state, None, model=model)
        model(input_ids=ids(step + 1))
        scales.append(first.input_range.scale.item())
        rounds.append((first.rounding, first.input_range.rounding))
    assert len(set(scales[:3])) == 3
    assert scales[2] == scales[3] == scales[4]
    assert rounds == [(False, False)] * 2 + [(True, True)] * 3
    model.eval()
    set_phase(model, observe=True, rounding=True)
    model(input_ids=ids(7))
    assert first.input_range.scale.item() == scales[4]  # evaluation observes nothing


@pytest.mark.parametrize("model_type", list(REQUANTIZED))
def test_a_saved_model_answers_the_same_bit_by_bit(model_type: str, tmp_path: Path) -> None:
    model = calibrated(model_type)
    model.save_pretrained(tmp_path)
    save_quantization(model, tmp_path, 0.1)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    plain = again(input_ids=ids()).logits
    assert load_quantization(again, tmp_path)
    answers = model(input_ids=ids()).logits
    assert torch.equal(again(input_ids=ids()).logits, answers)
    assert 1e-6 < (plain - answers).abs().max().item() < 0.2 * plain.abs().max().item()
    assert "load_quantization" in (tmp_path / "README.md").read_text()
    stored = read_json(tmp_path / QUANTIZATION_FILE)
    assert set(stored["layers"]) == set(quantized_layers(again))


def test_a_folder_without_scales_and_scales_of_other_weights(tmp_path: Path) -> None:
    model = calibrated()
    model.save_pretrained(tmp_path)
    assert not load_quantization(tiny(), tmp_path)
    save_quantization(model, tmp_path, 0.1)
    other = tiny()
    other.bert.pooler.dense.weight.data.mul_(2.0)
    with pytest.raises(UserError, match=r"pooler.dense: weight_scale = .*do not belong together"):
        load_quantization(other, tmp_path)
    with pytest.raises(UserError, match="layers differ from those of the model"):
        load_quantization(tiny("roberta"), tmp_path)
    write_json(tmp_path / QUANTIZATION_FILE, {"format": "int4"})
    with pytest.raises(UserError, match=r"quantization.json: format = 'int4'"):
        load_quantization(tiny(), tmp_path)


def test_layers_that_would_stay_in_floating_point_are_refused() -> None:
    gpt = GPT2ForSequenceClassification(
        AutoConfig.for_model("gpt2", n_embd=8, n_layer=1, n_head=1, vocab_size=9)
    )
    with pytest.raises(
        UserError, match=r"quantization: transformer.h.0.attn.c_attn: Conv1D is not supported"
    ):
        prepare_quantization(gpt, 0.01)
    albert = AutoConfig.for_model(
        "albert", hidden_size=8, num_attention_heads=1, intermediate_size=8, embedding_size=8, vocab_size=9
    )
    with pytest.raises(UserError, match=r"AlbertForSequenceClassification is not supported: no layer"):
        prepare_quantization(AutoModelForSequenceClassification.from_config(albert), 0.01)
    deberta = AutoConfig.for_model(
        "deberta-v2",
        hidden_size=8,
        num_attention_heads=1,
        intermediate_size=8,
        num_hidden_layers=1,
        vocab_size=9,
    )
    with pytest.raises(UserError, match=r"DebertaV2ForQuestionAnswering is not supported: no layer"):
        prepare_quantization(AutoModelForQuestionAnswering.from_config(deberta), 0.01)
    model = tiny()
    model.bert.embeddings.word_embeddings.max_norm = 1.0
    with pytest.raises(UserError, match="Embedding with max_norm"):
        prepare_quantization(model, 0.01)
