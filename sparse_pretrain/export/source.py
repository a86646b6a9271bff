"""The tensors of a model folder one at a time: names and shapes first, values when their turn comes."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PretrainedConfig

from sparse_pretrain.checkpoint.folder import (
    model_path,
    one_line,
    prunable_names,
    read_config,
    read_masks,
    read_tensors,
    weight_files,
)
from sparse_pretrain.checkpoint.tensor_file import DTYPES, LazyTensor
from sparse_pretrain.errors import UserError
from sparse_pretrain.pruning.masks import MaskSet


@dataclass(frozen=True)
class Source:
    """A model folder, opened.

    Attributes:
        folder: where its files lie.
        config: the architecture.
        tensors: by stored name, in stored order; values are read on `load`.
        masks: the mask file's content, None when there is none.
        prunable: stored names of the matrices that pruning concerns: those of the masks, else the default choice.
    """

    folder: Path
    config: PretrainedConfig
    tensors: dict[str, LazyTensor]
    masks: MaskSet | None
    prunable: list[str]


@contextmanager
def open_source(source: str | Path) -> Iterator[Source]:
    """Open a model folder or hub name; `.bin` files are mapped without running any pickled code.

    Raises:
        UserError: no model there, a broken file, or a mask that fits no weight.
    """
    path = model_path(source)
    config = read_config(path)
    with ExitStack() as stack:
        tensors: dict[str, LazyTensor] = {}
        files = weight_files(path)
        for file in files:
            tensors.update(open_file(file, stack) if file.suffix == ".safetensors" else map_torch_file(file))
        masks = read_masks(path)
        yield Source(files[0].parent, config, tensors, masks, choose(path, config, tensors, masks))


def open_file(file: Path, stack: ExitStack) -> dict[str, LazyTensor]:
    """Return the tensors of a safetensors file, which stays open until the stack closes."""
    try:
        opened = stack.enter_context(safe_open(file, framework="pt"))
        found = {}
        for name in opened.keys():  # noqa: SIM118 - not a dict
            part = opened.get_slice(name)
            shape = torch.Size(part.get_shape())
            found[name] = LazyTensor(DTYPES[part.get_dtype()], shape, partial(opened.get_tensor, name))
    except (SafetensorError, OSError, KeyError) as error:
        raise UserError(f"{file}: broken weights file ({one_line(error)})") from None
    return found


def map_torch_file(file: Path) -> dict[str, LazyTensor]:
    """Return the tensors of a `torch.save` file, memory-mapped."""

    def loader(tensor: Tensor) -> Callable[[], Tensor]:
        return lambda: tensor.contiguous()

    return {
        name: LazyTensor(tensor.dtype, tensor.shape, loader(tensor))
        for name, tensor in read_tensors(file).items()
    }


def choose(
    path: str, config: PretrainedConfig, tensors: dict[str, LazyTensor], masks: MaskSet | None
) -> list[str]:
    """Return the names of the matrices that pruning concerns."""
    if masks is None:
        shapes = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
            for name, tensor in tensors.items()
        }
        return prunable_names(config, shapes)
    for name, shape in masks.shapes.items():
        if name not in tensors or tensors[name].shape != shape:
            raise UserError(f"{path}: the mask of {name} fits no weight; the masks belong to another model")
    return [name for name in tensors if name in masks]
