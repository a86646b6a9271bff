"""Real int8 in ONNX: weights stored as int8, activations rounded by the scales of training, or of calibration."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from sparse_pretrain.errors import UserError
from sparse_pretrain.export.check import answers
from sparse_pretrain.export.inputs import (
    Array,
    Batch,
    InputLayout,
    batches,
    read_sentences,
    sentence_rows,
)
from sparse_pretrain.export.integer_layers import with_integer_layers
from sparse_pretrain.export.loading import load_model, load_tokenizer
from sparse_pretrain.export.onnx_graph import write_onnx
from sparse_pretrain.export.runners import torch_runner
from sparse_pretrain.quantization.layers import ActivationRange
from sparse_pretrain.quantization.prepare import prepare_quantization, set_phase
from sparse_pretrain.quantization.stored import load_quantization

CALIBRATION_BATCH = 16
# Share of a new batch in the ranges' average: a few dozen batches have to do.
CALIBRATION_MOMENTUM = 0.1
# A value that lies between two levels is rounded up by one engine and down by another; what this does to an answer
# depends on how many levels it is away. Trained models differ by far less (docs/export.md).
INT8_TOLERANCE = 5e-2


def int8_model(source: str | Path, calibrate: Path | None, layout: InputLayout) -> PreTrainedModel | None:
    """Return the torch model that answers as int8 does, None for a source that has no scales and gets none.

    Args:
        source: as for an export.
        calibrate: sentences to find scales on, whatever scales the source has; None: the trained ones.
        layout: what the model takes.

    Raises:
        UserError: the sentences or the model cannot be used.
    """
    model = load_model(source)
    if calibrate is None:
        return model if load_quantization(model, source) else None
    tokenizer = load_tokenizer(source)
    if tokenizer is None:
        raise UserError(f"{source}: has no tokenizer for the sentences of {calibrate}")
    sentences = read_sentences(calibrate)
    rows = sentence_rows(tokenizer, sentences, len(sentences), layout.positions)
    observe(model, batches(rows, layout, model.config.pad_token_id or 0, CALIBRATION_BATCH), layout)
    return model


def observe(model: PreTrainedModel, inputs: Sequence[Batch], layout: InputLayout) -> None:
    """Give a model int8 layers whose ranges are those of some inputs, without training."""
    prepare_quantization(model, CALIBRATION_MOMENTUM)
    set_phase(model, observe=True, rounding=False)
    for module in model.modules():
        # Ranges move in training mode only; the rest stays in evaluation mode, for dropout would widen them.
        module.training = isinstance(module, ActivationRange)
    with torch.no_grad():
        for batch in inputs:
            model(**{name: torch.from_numpy(batch[name]) for name in layout.names})
    model.eval()
    set_phase(model, observe=False, rounding=True)


def int8_answers(model: PreTrainedModel, layout: InputLayout, inputs: Sequence[Batch]) -> list[list[Array]]:
    """Return the answers of a torch model that rounds, batch by batch."""
    return list(answers(torch_runner(model, layout.names), inputs))


def write_qdq(model: PreTrainedModel, layout: InputLayout, file: Path) -> None:
    """Write a model that `int8_model` returned: QuantizeLinear and DequantizeLinear around every int8 layer.

    Raises:
        UserError: torch cannot trace it.
    """
    write_onnx(with_integer_layers(model), layout, file)
