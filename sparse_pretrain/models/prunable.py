"""Which weights of a model may be pruned."""

import re
from collections.abc import Sequence

from torch import nn

from sparse_pretrain.errors import UserError


def prunable_weights(
    model: nn.Module, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> dict[str, nn.Parameter]:
    """Return the prunable parameters by name, in the model's order.

    With no `include`, the reference's choice (Prune Once for All, section 4): the weight of every
    `Linear` inside the encoder, pooler included; embeddings and everything outside the encoder (MLM,
    NSP and task heads) left dense. With `include`, every matrix whose name one of its regular
    expressions finds (`re.search`).

    Args:
        model: a Hugging Face model with a head (its `base_model_prefix` names the encoder) or a bare one.
        include: regular expressions; empty for the default choice.
        exclude: regular expressions; a weight that one of them finds stays dense.

    Raises:
        UserError: an expression does not compile, or nothing is left to prune.
    """
    included = [_compile(pattern) for pattern in include]
    excluded = [_compile(pattern) for pattern in exclude]
    parameters = dict(model.named_parameters())
    if included:
        matrices = [name for name, parameter in parameters.items() if parameter.ndim == 2]
        names = [name for name in matrices if any(pattern.search(name) for pattern in included)]
    else:
        names = [name for name in encoder_linear_weights(model) if name in parameters]
    chosen = {
        name: parameters[name] for name in names if not any(pattern.search(name) for pattern in excluded)
    }
    if not chosen:
        raise UserError(
            f"pruning: no weight matches include={list(include)} exclude={list(exclude)}; "
            f"names look like {next(iter(parameters), '(no parameters)')}"
        )
    return chosen


def encoder_linear_weights(model: nn.Module) -> list[str]:
    """Return the names of the `Linear` weights inside the encoder, pooler included."""
    prefix = getattr(model, "base_model_prefix", "")
    inside = f"{prefix}." if prefix and hasattr(model, prefix) else ""
    return [
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(inside)
    ]


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(f"pruning: {pattern!r} is not a regular expression: {error}") from None
