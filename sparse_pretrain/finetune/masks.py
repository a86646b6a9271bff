"""Which weights of a task model must stay zero: from the source's mask file, or from its zeros."""

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from sparse_pretrain.checkpoint.folder import (
    masks_from_zeros,
    model_path,
    prunable_names,
    read_folder,
    read_masks,
)
from sparse_pretrain.errors import UserError
from sparse_pretrain.finetune.partitions import is_sharded, shape_of
from sparse_pretrain.models.prunable import prunable_weights
from sparse_pretrain.pruning.masks import MaskSet


@dataclass(frozen=True)
class FoundMasks:
    """Masks by the task model's parameter names, and where they came from (`file`, `zeros`, `none`)."""

    masks: MaskSet
    origin: str


DENSE = FoundMasks(MaskSet({}), "none")


def find_masks(model: PreTrainedModel, source: str | Path) -> FoundMasks:
    """Return the masks for a model that was loaded from `source`.

    Args:
        model: the task model, its encoder already carrying the source's weights.
        source: release, model folder or hub name.

    Raises:
        UserError: a mask of the file has another shape than the weight, or none fits a weight.
    """
    path = model_path(source)
    from_file = read_masks(path)
    if from_file is not None:
        return FoundMasks(rename_masks(from_file, model, path), "file")
    prunable = prunable_weights(model)
    if any(is_sharded(weight) for weight in prunable.values()):
        # Loaded in shards (ZeRO 3): the zeros of all of it are in the files.
        stored = read_folder(source)
        weights = {name: stored.weights[name] for name in prunable_names(stored.config, stored.weights)}
        masks = masks_from_zeros(weights)
        return FoundMasks(rename_masks(masks, model, path), "zeros") if masks is not None else DENSE
    weights = {name: weight.detach() for name, weight in prunable.items()}
    from_zeros = masks_from_zeros(weights)
    return FoundMasks(from_zeros, "zeros") if from_zeros is not None else DENSE


def rename_masks(masks: MaskSet, model: PreTrainedModel, source: str) -> MaskSet:
    """Return masks under the model's own parameter names.

    The encoder of a task model has the prefix of its class (`bert.`), a bare encoder has none. Masks of
    weights that the task model has not (a pre-training head, a pooler) are left out.
    """
    parameters = dict(model.named_parameters())
    prefix = f"{model.base_model_prefix}."
    renamed = {}
    for name, mask in masks.items():
        candidates = (name, name.removeprefix(prefix), prefix + name)
        own = next((candidate for candidate in candidates if candidate in parameters), None)
        if own is None:
            continue
        if shape_of(parameters[own]) != mask.shape:
            raise UserError(
                f"{source}: the mask of {name} has shape {list(mask.shape)}, the model's weight "
                f"{list(shape_of(parameters[own]))}; the masks belong to another model"
            )
        renamed[own] = mask
    if not renamed:
        raise UserError(
            f"{source}: no mask fits a weight of {type(model).__name__}; the mask file names "
            f"{next(iter(masks), 'nothing')}, the model {next(iter(parameters))}"
        )
    return MaskSet(renamed)
