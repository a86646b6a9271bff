"""Read a Hugging Face model folder or hub name: its architecture, tensors, masks, prunable weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig
from transformers.utils.hub import cached_file

from sparse_pretrain.checkpoint.quiet import quiet_libraries
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import read_json
from sparse_pretrain.models.prunable import prunable_weights
from sparse_pretrain.pruning.masks import MASK_FILE, MaskSet

SPARSITY_FILE = "sparsity.json"
# safetensors first: no pickle is opened where there is a choice.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# A dense model has next to no exact zeros; one that was pruned has far more than this share.
SPARSE_FROM = 0.01


@dataclass(frozen=True)
class ModelFolder:
    """What lies in a model folder.

    Attributes:
        source: the folder or hub name as it was given.
        config: the architecture.
        weights: tensors as stored, by stored name.
        weight_files: the files they were read from.
        masks: the mask file's content; None when there is none.
        facts: the content of `sparsity.json`, which `release` writes; None for other folders.
    """

    source: str
    config: PretrainedConfig
    weights: dict[str, Tensor]
    weight_files: list[Path]
    masks: MaskSet | None
    facts: dict[str, Any] | None


def model_path(source: str | Path) -> str:
    """Return the folder that holds the model: `source`, its `model/`, or the hub name unchanged.

    Raises:
        UserError: a folder without a `config.json`.
    """
    folder = Path(source).expanduser()
    if not folder.exists():
        return str(source)
    for candidate in (folder, folder / "model"):
        if (candidate / "config.json").is_file() and (
            any((candidate / name).is_file() for name in WEIGHT_FILES)
        ):
            return str(candidate)
    raise UserError(
        f"{source}: no model here; a model folder holds config.json and model.safetensors "
        "(a checkpoint becomes one by `sparse-pretrain release CHECKPOINT OUT`)"
    )


def read_folder(source: str | Path) -> ModelFolder:
    """Read a model folder, or a model of the hub.

    Raises:
        UserError: nothing there, or a file that is broken or truncated.
    """
    path = model_path(source)
    config = read_config(path)
    files = weight_files(path)
    weights: dict[str, Tensor] = {}
    for file in files:
        weights.update(read_tensors(file))
    return ModelFolder(str(source), config, weights, files, read_masks(path), read_facts(path))


def read_config(path: str) -> PretrainedConfig:
    """Return the architecture of a folder or hub name.

    Raises:
        UserError: there is none.
    """
    try:
        with quiet_libraries():
            config: PretrainedConfig = AutoConfig.from_pretrained(path)
            return config
    except (OSError, ValueError, KeyError) as error:
        if Path(path).exists():
            raise UserError(f"{path}/config.json: not usable ({one_line(error)})") from None
        raise UserError(
            f"{path}: no such folder, and no such model on the hub (or the hub is unreachable)"
        ) from None


def weight_files(path: str) -> list[Path]:
    """Return the files that hold the weights, in order.

    Raises:
        UserError: there are none, or the index names one that is missing.
    """
    for name in WEIGHT_FILES:
        found = find_file(path, name)
        if found is None:
            continue
        if not name.endswith(".index.json"):
            return [found]
        parts = sorted(set(read_json(found)["weight_map"].values()))
        files = {part: find_file(path, part) for part in parts}
        missing = [part for part, file in files.items() if file is None]
        if missing:
            raise UserError(f"{path}: {missing[0]} is missing, {name} names it")
        return [file for file in files.values() if file is not None]
    raise UserError(f"{path}: no weights here; looked for {', '.join(WEIGHT_FILES)}")


def find_file(path: str, name: str) -> Path | None:
    """Return a file of a folder, or of a hub model through the local cache; None when it has none."""
    if Path(path).is_dir():
        file = Path(path) / name
        return file if file.is_file() else None
    try:
        found = cached_file(path, name, _raise_exceptions_for_missing_entries=False)
    except OSError:
        return None
    return None if found is None else Path(found)


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors or torch file (torch files without running any pickled code).

    Raises:
        UserError: the file is broken.
    """
    try:
        if file.suffix == ".safetensors":
            return dict(load_file(file))
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        return {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    except (SafetensorError, OSError, RuntimeError, ValueError, AttributeError, EOFError) as error:
        raise UserError(f"{file}: broken weights file ({one_line(error)})") from None
    except Exception as error:  # pickle raises its own kinds, none of them in common with the above
        raise UserError(f"{file}: not a plain weights file ({one_line(error)})") from None


def read_masks(path: str) -> MaskSet | None:
    """Return the masks beside a model, or None when it has no mask file."""
    file = find_file(path, MASK_FILE)
    return None if file is None else MaskSet.load(file)


def read_facts(path: str) -> dict[str, Any] | None:
    """Return what `release` wrote beside a model, or None."""
    file = find_file(path, SPARSITY_FILE)
    return None if file is None else dict(read_json(file))


def meta_model(config: PretrainedConfig) -> nn.Module:
    """Return the model of a config on the meta device: names and shapes, no memory."""
    names = config.architectures or []
    factory = getattr(transformers, names[0], None) if names else None
    with torch.device("meta"), quiet_libraries():
        if factory is None:
            return AutoModel.from_config(config)  # type: ignore[no-any-return]
        return factory(config)  # type: ignore[no-any-return]


def prunable_names(config: PretrainedConfig, stored: dict[str, Tensor]) -> list[str]:
    """Return the stored names of the weights that pruning would choose by default, in the model's order.

    A folder saved from a bare encoder names its weights without the prefix of the class in its config,
    or the other way round; both are found.
    """
    model = meta_model(config)
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    found = []
    for name in prunable_weights(model):
        candidates = (name, name.removeprefix(prefix), prefix + name)
        found.extend([candidate for candidate in candidates if candidate in stored][:1])
    return found


def masks_from_zeros(weights: dict[str, Tensor]) -> MaskSet | None:
    """Return the masks that zeros spell, or None when the weights are dense (below 1 % zeros in all)."""
    total = sum(weight.numel() for weight in weights.values())
    zeros = sum(weight.numel() - int(torch.count_nonzero(weight)) for weight in weights.values())
    return MaskSet.from_zeros(weights) if total and zeros / total >= SPARSE_FROM else None


def one_line(error: BaseException) -> str:
    """Return an exception's message on one line, shortened."""
    return " ".join(str(error).split())[:200]
