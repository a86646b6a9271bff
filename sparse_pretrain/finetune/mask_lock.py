"""Keep pruned weights at zero in anybody's Hugging Face `Trainer`."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback

from sparse_pretrain.errors import UserError
from sparse_pretrain.finetune.masks import find_masks
from sparse_pretrain.pruning.masks import MaskSet


class MaskBrokenError(Exception):
    """A weight outside its mask is not zero."""


class MaskLock(TrainerCallback):
    """Locks a sparsity pattern while a `Trainer` trains.

    Pruned weights are set to zero at the start; their gradients are zeroed before clipping sees them, so
    that the norm and the optimizer's moments know only weights that exist; after every optimizer step
    the weights are set to zero again, whatever the optimizer did; at the end the pattern is proven.

        lock = MaskLock.from_source(model, "path/to/release")
        trainer = Trainer(model=model, ..., callbacks=[lock])
        trainer.train()
    """

    def __init__(self, masks: MaskSet) -> None:
        """Lock `masks`, given by the model's parameter names."""
        self.masks = masks
        self._pruned: dict[str, Tensor] = {}
        self._locked: dict[str, nn.Parameter] = {}
        self._hooks: list[Any] = []

    @classmethod
    def from_source(cls, model: PreTrainedModel, source: str | Path) -> "MaskLock":
        """Return the lock for a model loaded from `source`: its mask file, or else its zeros.

        Raises:
            UserError: the masks do not fit the model, or the source is dense.
        """
        found = find_masks(model, source)
        if found.origin == "none":
            raise UserError(
                f"{source}: dense: it has no mask file, and no share of zeros that would be masks"
            )
        return cls(found.masks)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set pruned weights to zero and hook their gradients."""
        self.lock(kwargs["model"])

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set pruned weights to zero again: momentum or decay of any optimizer may have moved them."""
        self.apply()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Release the hooks and prove the pattern."""
        self.unlock()
        self.prove(kwargs["model"])

    def lock(self, model: nn.Module) -> None:
        """Start: find the weights, apply the masks, hook the gradients.

        Raises:
            UserError: a mask has no weight of its name and shape in the model.
        """
        self.unlock()
        parameters = plain_parameters(model)
        for name, mask in self.masks.items():
            parameter = parameters.get(name)
            if parameter is None or parameter.shape != mask.shape:
                shape = "no such weight" if parameter is None else f"shape {list(parameter.shape)}"
                raise UserError(f"mask of {name}: shape {list(mask.shape)}, the model has {shape}")
            pruned = ~mask.to(parameter.device)
            self._locked[name], self._pruned[name] = parameter, pruned
            if parameter.requires_grad:
                self._hooks.append(parameter.register_hook(gradient_hook(pruned)))
        self.apply()

    @torch.no_grad()
    def apply(self) -> None:
        """Set every pruned weight to exactly zero, in place."""
        for name, parameter in self._locked.items():
            parameter.masked_fill_(self._pruned[name], 0.0)

    def unlock(self) -> None:
        """Remove the gradient hooks and let go of the weights."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._locked.clear()
        self._pruned.clear()

    def prove(self, model: nn.Module) -> None:
        """Raise when a weight outside its mask is not zero.

        Raises:
            MaskBrokenError: naming the weight and how many of its elements.
        """
        for name, count in nonzero_outside(model, self.masks).items():
            if count:
                raise MaskBrokenError(f"{name}: {count} weights outside the mask are not zero")


def gradient_hook(pruned: Tensor) -> Any:
    """Return a hook that zeroes the gradient of pruned weights."""

    def zero_pruned(gradient: Tensor) -> Tensor:
        return gradient.masked_fill(pruned, 0.0)

    return zero_pruned


def plain_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return parameters by name, without what DistributedDataParallel and torch.compile put in front."""
    return {
        name.removeprefix("module.").removeprefix("_orig_mod."): parameter
        for name, parameter in model.named_parameters()
    }


def nonzero_outside(model: nn.Module, masks: MaskSet) -> dict[str, int]:
    """Return, for each masked weight, how many elements outside the mask are not zero (NaN counts)."""
    parameters = plain_parameters(model)
    return {
        name: int((parameters[name].detach() != 0).logical_and_(~mask.to(parameters[name].device)).sum())
        for name, mask in masks.items()
    }
