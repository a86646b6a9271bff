"""What a rank holds of a parameter: all of it, or one ZeRO-3 shard; only DeepSpeed's public names are used."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def parameters_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return parameters by name, without what DDP, DeepSpeed's engine and torch.compile put in front."""
    return {
        name.replace("_orig_mod.", "").removeprefix("module."): parameter
        for name, parameter in model.named_parameters()
    }


def is_sharded(parameter: nn.Parameter) -> bool:
    """Say whether ZeRO-3 has split a parameter over the ranks."""
    return hasattr(parameter, "ds_tensor")


def shape_of(parameter: nn.Parameter) -> torch.Size:
    """Return the shape of the whole parameter."""
    return torch.Size(parameter.ds_shape) if is_sharded(parameter) else parameter.shape  # type: ignore[attr-defined]


def held(parameter: nn.Parameter) -> Iterator[tuple[int, Tensor]]:
    """Yield every copy that this rank holds of (a part of) a parameter: index of its first element, and a view.

    A ZeRO-3 parameter that is whole at the moment (small ones always are) has its shard and the whole beside it.
    """
    if not is_sharded(parameter):
        yield 0, parameter.data
        return
    sharded: Any = parameter
    shard = sharded.ds_tensor.data.view(-1)
    start = shard.numel() * dist.get_rank()
    # The last ranks' shards are padded up to equal size: what lies beyond the weight is not part of it.
    length = max(0, min(shard.numel(), sharded.ds_numel - start))
    if length:
        yield start, shard[:length]
    if sharded.ds_status.name == "AVAILABLE":
        yield 0, parameter.data


@torch.no_grad()
def mask_master(parameter: nn.Parameter, mask: Tensor) -> None:
    """Set pruned weights of DeepSpeed's fp32 master to zero; nothing without DeepSpeed (collective at ZeRO 1 and 2)."""
    if not parameter.requires_grad:
        return  # no optimizer has a copy of it
    if is_sharded(parameter):
        from deepspeed.utils import safe_get_local_fp32_param, safe_set_local_fp32_param

        master = safe_get_local_fp32_param(parameter)
        start = parameter.ds_tensor.numel() * dist.get_rank()  # type: ignore[attr-defined]
        own = mask.reshape(-1)[start : start + master.numel()].to(master.device)
        changed = master.clone().view(-1)
        changed[: own.numel()] *= own
        safe_set_local_fp32_param(parameter, changed.view_as(master))
    elif hasattr(parameter, "_hp_mapping"):
        from deepspeed.utils import safe_get_full_fp32_param, safe_set_full_fp32_param

        whole = safe_get_full_fp32_param(parameter)
        safe_set_full_fp32_param(parameter, whole * mask.to(whole.device))
