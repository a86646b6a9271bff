"""Keep pruned weights at zero in anybody's Hugging Face `Trainer` or accelerate loop, on any number of ranks."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback

from sparse_pretrain.errors import UserError
from sparse_pretrain.finetune.masks import find_masks
from sparse_pretrain.finetune.partitions import held, is_sharded, mask_master, parameters_of, shape_of
from sparse_pretrain.pruning.masks import MaskSet


class MaskBrokenError(Exception):
    """A weight outside its mask is not zero."""


class MaskLock(TrainerCallback):
    """Locks a sparsity pattern while a `Trainer` trains: alone, under DDP, or under DeepSpeed ZeRO 1, 2 or 3.

    Pruned weights are set to zero at the start; their gradients are zeroed before clipping sees them, so
    that the norm and the optimizer's moments know only weights that exist; after every optimizer step
    the weights are set to zero again, whatever the optimizer did; at the end the pattern is proven.

        lock = MaskLock.from_source(model, "path/to/release")
        trainer = Trainer(model=model, ..., callbacks=[lock])
        trainer.train()

    In a loop of your own, with accelerate or without:

        lock = MaskLock.from_source(model, "path/to/release")
        lock.lock(model)   # after accelerator.prepare(model, ...) or deepspeed.initialize
        lock.apply()       # after every optimizer.step()
    """

    def __init__(self, masks: MaskSet) -> None:
        """Lock `masks`, given by the model's parameter names."""
        self.masks = masks
        self._locked: list[tuple[nn.Parameter, Tensor]] = []
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
        """Start: find the weights, apply the masks (to DeepSpeed's masters, too), hook the gradients.

        Collective under DeepSpeed: every rank calls it.

        Raises:
            UserError: a mask has no weight of its name and shape in the model.
        """
        self.unlock()
        parameters = parameters_of(model)
        for name, mask in self.masks.items():
            parameter = parameters.get(name)
            if parameter is None or shape_of(parameter) != mask.shape:
                shape = "no such weight" if parameter is None else f"shape {list(shape_of(parameter))}"
                raise UserError(f"mask of {name}: shape {list(mask.shape)}, the model has {shape}")
            mask_master(parameter, mask)
            pruned = ~mask.to(parameter.device)
            self._locked.append((parameter, pruned.view(-1)))
            if parameter.requires_grad:
                self._hooks.append(parameter.register_hook(gradient_hook(pruned)))
        self.apply()

    @torch.no_grad()
    def apply(self) -> None:
        """Set every pruned weight to exactly zero, in place, in every copy that this rank holds."""
        for parameter, pruned in self._locked:
            for start, part in held(parameter):
                own = pruned[start : start + part.numel()].view(part.shape)
                part.masked_fill_(own.to(part.device), 0.0)

    def unlock(self) -> None:
        """Remove the gradient hooks and let go of the weights."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._locked.clear()

    def prove(self, model: nn.Module) -> None:
        """Raise when a weight outside its mask is not zero (collective at ZeRO 3).

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


def nonzero_outside(model: nn.Module, masks: MaskSet) -> dict[str, int]:
    """Return, for each masked weight, how many elements outside the mask are not zero (NaN counts).

    At ZeRO 3 the ranks' shards are counted together (collective).
    """
    parameters = parameters_of(model)
    return {name: count_outside(parameters[name], mask) for name, mask in masks.items()}


def count_outside(parameter: nn.Parameter, mask: Tensor) -> int:
    """Return how many elements of a weight outside its mask are not zero, over all ranks' shards."""
    flat = mask.view(-1)
    counts = {True: 0, False: 0}
    for start, part in held(parameter):
        own = flat[start : start + part.numel()].view(part.shape).to(part.device)
        counts[part.numel() == mask.numel()] += int((part != 0).logical_and_(~own).sum())
    if not is_sharded(parameter):
        return counts[True]
    total = torch.tensor([counts[False]], device=parameter.device)
    dist.all_reduce(total)
    # Shards, and what was whole beside them: both have to be clean.
    return max(int(total), counts[True])
