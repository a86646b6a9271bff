"""The encoder's layers through `torch.compile`: passes over memory that eager kernels make apart become one.

Layer by layer, not the whole encoder: all layers share one compilation, and what changes from batch to batch (how many
sequences there are, where logits are wanted) stays outside.
"""

from torch import nn
from transformers import PreTrainedModel

from sparse_pretrain.errors import UserError

# Forward with and without gradient, of student and teacher, with and without a mask, at fixed and at any shapes.
VARIANTS = 32


def compile_layers(model: PreTrainedModel) -> None:
    """Compile a model's repeated layers, in place; each at its first call. Names and weights stay what they are.

    Raises:
        UserError: the model has no list of layers of one kind.
    """
    # Here: a second that only a run that compiles should wait.
    from torch._dynamo import config

    layers = repeated_layers(model)
    config.recompile_limit = max(config.recompile_limit, VARIANTS)
    for layer in layers:
        layer.compile()


def repeated_layers(model: PreTrainedModel) -> list[nn.Module]:
    """Return the longest list of modules of one class in a model: its encoder's layers.

    Raises:
        UserError: there is none.
    """
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    alike = [layers for layers in lists if len({type(layer) for layer in layers}) == 1]
    if not alike:
        raise UserError(
            f"engine.compile = true: no list of layers was found in {type(model).__name__}; set it to false"
        )
    return max(alike, key=len)
