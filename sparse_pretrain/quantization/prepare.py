"""Which layers of a model are rounded (Q8BERT, Zafrir et al. 2019, as Prune Once for All uses it)."""

from torch import nn
from transformers import PreTrainedModel

from sparse_pretrain.errors import UserError
from sparse_pretrain.quantization.layers import (
    QuantizedEmbedding,
    QuantizedLayer,
    QuantizedLinear,
    ranges_of,
)

# How the families call the attention's value projection, and the projections whose output is added to the residual
# stream (BERT, RoBERTa, ELECTRA; DistilBERT).
VALUES = ("value", "v_lin")
RESIDUALS = ("output.dense", "out_lin", "lin2")


def prepare_quantization(model: PreTrainedModel, momentum: float) -> dict[str, QuantizedLayer]:
    """Put int8 layers into the places of every Linear, and every Embedding of the encoder; return them by name.

    Outputs of the value projection, of the projections into the residual stream, and of everything outside the encoder
    stay as they are; other Linear outputs are rounded too. Nothing is observed or rounded yet (`set_phase`). Parameters
    keep their names and are the same objects, so masks, optimizers and saved files know them as before.

    Args:
        model: a task model; its `base_model_prefix` tells the encoder from the head.
        momentum: share of a new batch in the ranges' moving average, in (0, 1].

    Raises:
        UserError: a layer that cannot be rounded, or an encoder whose layers have other names.
    """
    check_supported(model)
    layers: dict[str, QuantizedLayer] = {}
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear:
            layers[name] = QuantizedLinear(module, momentum, is_requantized(model, name))
        elif type(module) is nn.Embedding and is_encoder(model, name):
            layers[name] = QuantizedEmbedding(module)
    for name, layer in layers.items():
        parent, _, own = name.rpartition(".")
        layer.train(model.training)
        layer.to(layer.weight.device)
        setattr(model.get_submodule(parent), own, layer)
    return layers


def check_supported(model: PreTrainedModel) -> None:
    """Refuse what would silently stay in floating point.

    Raises:
        UserError: naming the layer.
    """
    for name, module in model.named_modules():
        matrices = [own for own, value in module.named_parameters(recurse=False) if value.ndim > 1]
        kind = type(module).__name__
        if matrices and type(module) not in (nn.Linear, nn.Embedding):
            raise UserError(
                f"quantization: {name}: {kind} is not supported; only Linear and Embedding can be trained in int8"
            )
        if isinstance(module, nn.Embedding) and module.max_norm is not None:
            raise UserError(f"quantization: {name}: an Embedding with max_norm is not supported")
    inside = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    inside = [name for name in inside if is_encoder(model, name)]
    for endings in (VALUES, RESIDUALS):
        if not any(ends_with(name, endings) for name in inside):
            raise UserError(
                f"quantization: {type(model).__name__} is not supported: no layer of its encoder ends in "
                f"{' or '.join(endings)}, as those of BERT, RoBERTa and DistilBERT do"
            )


def is_encoder(model: PreTrainedModel, name: str) -> bool:
    """Say whether a layer belongs to the encoder; a model without a head is all encoder."""
    prefix = model.base_model_prefix
    return not hasattr(model, prefix) or name.startswith(f"{prefix}.")


def is_requantized(model: PreTrainedModel, name: str) -> bool:
    """Say whether a Linear's output is rounded."""
    return is_encoder(model, name) and not ends_with(name, VALUES + RESIDUALS)


def ends_with(name: str, endings: tuple[str, ...]) -> bool:
    """Say whether a layer's name is one of the endings, or ends in one of them after a dot."""
    return f".{name}".endswith(tuple(f".{ending}" for ending in endings))


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLayer]:
    """Return the int8 layers of a model by name; none before `prepare_quantization`."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, QuantizedLinear | QuantizedEmbedding)
    }


def set_phase(model: nn.Module, observe: bool, rounding: bool) -> None:
    """Say for all int8 layers of a model whether ranges move with every batch, and whether values are rounded."""
    for layer in quantized_layers(model).values():
        layer.rounding = rounding
        for activation in ranges_of(layer):
            activation.observing, activation.rounding = observe, rounding
