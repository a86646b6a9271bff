"""`quantization.json`: the scales and zero points of a model folder whose weights are kept in fp32."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from sparse_pretrain.checkpoint.folder import find_file, model_path
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import read_json, write_json, write_text
from sparse_pretrain.quantization.layers import (
    ActivationRange,
    QuantizedEmbedding,
    QuantizedLayer,
    QuantizedLinear,
)
from sparse_pretrain.quantization.prepare import prepare_quantization, quantized_layers, set_phase
from sparse_pretrain.quantization.rounding import weight_scale

QUANTIZATION_FILE = "quantization.json"
FORMAT = "int8-qat-1"
# The weights of a copy in half precision are still these weights; others are not.
SCALE_TOLERANCE = 0.01
DESCRIPTION = (
    "Trained with int8 in the loop. The weights beside this file are fp32, as training left them; the model's answers "
    "are those with weights and activations rounded as given here. "
    "Weights: q = clamp(round(w / weight_scale), -127, 127), w' = q * weight_scale. "
    "Activations: q = clamp(round(x / scale) + zero_point, 0, 255), x' = (q - zero_point) * scale; input: before the "
    "layer, output: after its bias, null: not rounded. "
    "Load: sparse_pretrain.quantization.load_quantization(model, folder)."
)
README = """# Trained with int8 in the loop

`model.safetensors` holds the weights in fp32, as training left them: transformers alone answers without rounding.
`quantization.json` holds the scales and zero points of every Linear and Embedding that was trained in int8.

```python
from transformers import {model}
from sparse_pretrain.quantization import load_quantization

model = {model}.from_pretrained(folder).eval()
load_quantization(model, folder)  # now it answers as int8 does
```

`sparse-pretrain evaluate` measures the int8 answers, `sparse-pretrain export onnx FOLDER OUT --int8` writes real int8.
"""
Facts = dict[str, Any]


def save_quantization(model: PreTrainedModel, folder: Path, momentum: float) -> None:
    """Write the scales of a model's trained layers, fp32 numbers exactly, and a README that says what the folder is."""
    facts = {
        "format": FORMAT,
        "description": DESCRIPTION,
        "bits": 8,
        "momentum": momentum,
        "layers": {name: layer_facts(layer) for name, layer in quantized_layers(model).items()},
    }
    write_json(folder / QUANTIZATION_FILE, facts)
    write_text(folder / "README.md", README.format(model=type(model).__name__))


def layer_facts(layer: QuantizedLayer) -> Facts:
    """Return what the file says of one layer."""
    scale = weight_scale(layer.weight).item()
    if isinstance(layer, QuantizedEmbedding):
        return {"kind": "embedding", "weight_scale": scale}
    return {
        "kind": "linear",
        "weight_scale": scale,
        "input": range_facts(layer.input_range),
        "output": None if layer.output_range is None else range_facts(layer.output_range),
    }


def range_facts(activation: ActivationRange) -> Facts | None:
    """Return scale and zero point; None for a layer that training never used."""
    if not activation.seen:
        return None
    return {"scale": activation.scale.item(), "zero_point": int(activation.zero_point)}


def read_quantization(source: str | Path) -> Facts | None:
    """Return the content of a model's `quantization.json`; None when it has none.

    Raises:
        UserError: not of our format.
    """
    folder = Path(source).expanduser()
    # A packed folder (`export bitmask`) has the file, and no weights that `model_path` knows.
    own = folder / QUANTIZATION_FILE
    file = own if own.is_file() else find_file(model_path(source), QUANTIZATION_FILE)
    if file is None:
        return None
    facts: Facts = read_json(file)
    if facts.get("format") != FORMAT or not isinstance(facts.get("layers"), dict):
        raise UserError(f"{file}: format = {facts.get('format')!r}: this version reads {FORMAT!r}")
    return facts


def load_quantization(model: PreTrainedModel, source: str | Path) -> bool:
    """Make a model that was loaded from `source` answer in int8, by the scales of its `quantization.json`.

    Returns:
        False, and the model is as it was, when the source was not trained in int8.

    Raises:
        UserError: the file does not belong to the model.
    """
    facts = read_quantization(source)
    if facts is None:
        return False
    where = f"{source}: {QUANTIZATION_FILE}"
    layers = prepare_quantization(model, facts["momentum"])
    stored = facts["layers"]
    odd = sorted(set(layers) ^ set(stored))
    if odd:
        raise UserError(f"{where}: {len(odd)} layers differ from those of the model, such as {odd[0]}")
    for name, layer in layers.items():
        own, wanted = weight_scale(layer.weight).item(), stored[name]["weight_scale"]
        if abs(own - wanted) > SCALE_TOLERANCE * wanted:
            raise UserError(
                f"{where}: {name}: weight_scale = {wanted:.6g}, the weights beside it have {own:.6g}; they do not "
                "belong together"
            )
        if isinstance(layer, QuantizedLinear):
            fix(layer.input_range, stored[name]["input"])
            if layer.output_range is not None:
                fix(layer.output_range, stored[name]["output"])
    set_phase(model, observe=False, rounding=True)
    return True


def fix(activation: ActivationRange, facts: Facts | None) -> None:
    """Set a range as the file has it."""
    if facts is not None:
        activation.fix(facts["scale"], facts["zero_point"])
