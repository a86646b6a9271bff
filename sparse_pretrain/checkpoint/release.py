"""A checkpoint becomes a Hugging Face folder: exact zeros, masks, tokenizer, model card."""

import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
)

from sparse_pretrain.checkpoint.card import UNKNOWN_LICENSE, hub_datasets, model_card, without_paths
from sparse_pretrain.checkpoint.contents import CheckpointModel
from sparse_pretrain.checkpoint.folder import SPARSITY_FILE, WEIGHT_FILES, one_line, read_config, read_folder
from sparse_pretrain.checkpoint.inspect import Report, inspect_folder
from sparse_pretrain.checkpoint.quiet import quiet_libraries
from sparse_pretrain.checkpoint.staged import Kind, check_target, replace_folder, staged_folder
from sparse_pretrain.data.manifest import read_manifest
from sparse_pretrain.errors import FailedError, UserError
from sparse_pretrain.files import sha256_file, write_json, write_text
from sparse_pretrain.pruning.masks import MASK_FILE, MaskSet

# Fine-tuning puts its model in place with it too.
__all__ = ["ReleaseError", "build_model", "copy_tokenizer", "release", "replace_folder", "verify_release"]

WEIGHTS = "model.safetensors"
RELEASE = Kind("release", SPARSITY_FILE)


class ReleaseError(FailedError):
    """The written release is not what it should be; nothing was put in its place."""


def release(
    contents: CheckpointModel,
    out: Path,
    console: Console,
    overwrite: bool = False,
    name: str = "",
    license_id: str = UNKNOWN_LICENSE,
) -> Path:
    """Write a checkpoint as a Hugging Face folder that plain `from_pretrained` loads.

    The folder is written and verified beside `out` under a temporary name, then renamed.

    Args:
        contents: of the checkpoint.
        out: the folder to make.
        console: told what was released.
        overwrite: replace an earlier release at `out`.
        name: that the model card gives for loading it, such as `owner/name`; the folder's name unless given.
        license_id: the hub's identifier of the weights' license, for the model card.

    Raises:
        UserError: `out` is not empty, or weights, masks and config do not belong together.
        ReleaseError: the written folder failed its verification.
    """
    out = out.expanduser()
    check_target(out, RELEASE, overwrite)
    if contents.masks is None:
        console.print("[yellow]this run did not prune: the release is dense and has no masks[/yellow]")
    model = build_model(contents)
    with staged_folder(out, RELEASE, overwrite) as staging:
        write_release(contents, model, staging, name or out.name, license_id)
        report = verify_release(staging)
    prunable = report["prunable"]
    console.print(
        f"released step {contents.step} to {out}: {report['architecture']}, {prunable['weights']:,} prunable "
        f"weights, {prunable['sparsity']:.4%} of them zero; verified",
        soft_wrap=True,
    )
    return out


def build_model(contents: CheckpointModel) -> PreTrainedModel:
    """Return the Hugging Face model with the checkpoint's weights, masks applied once: exact zeros.

    Raises:
        UserError: no class of the architecture has exactly these weights, or a mask fits no weight.
    """
    config = read_config(str(contents.model_folder))
    weights = apply_masks(contents.weights, contents.masks)
    problems: list[tuple[int, str]] = []
    for factory in candidate_classes(config):
        with torch.device("meta"), quiet_libraries():
            skeleton = factory(config)
        problem = mismatch(skeleton, weights)
        if problem is None:
            with quiet_libraries():
                model: PreTrainedModel = factory(config).float()
                model.load_state_dict(weights, strict=False)
                model.tie_weights()
            model.eval()
            return model
        names = {name for name, _ in skeleton.named_parameters()}
        problems.append((len(names.symmetric_difference(weights)), problem))
    # The class that comes nearest is the one that was meant.
    closest = min(problems)[1] if problems else "no masked-language model has this architecture"
    raise UserError(
        f"{contents.model_folder}: the checkpoint's weights do not belong to this config: {closest}"
    )


def candidate_classes(config: PretrainedConfig) -> list[Any]:
    """Return model classes to try, the config's own first, then masked-LM, then the one with an NSP head."""
    named = [getattr(transformers, name, None) for name in config.architectures or []]
    # A private mapping, but the only way to ask for the class without building the model twice.
    auto = [
        factory._model_mapping.get(type(config), None)
        for factory in (AutoModelForMaskedLM, AutoModelForPreTraining)
    ]
    return list(dict.fromkeys(factory for factory in [*named, *auto] if factory is not None))


def mismatch(skeleton: PreTrainedModel, weights: dict[str, Tensor]) -> str | None:
    """Return how weights and a model's parameters differ, or None when they are the same."""
    # A tied weight is stored under one of its names; every other name of it is fine too.
    every_name = {name for name, _ in skeleton.named_parameters(remove_duplicate=False)}
    buffers = {name for name, _ in skeleton.named_buffers()}
    for name, parameter in skeleton.named_parameters():
        if name not in weights:
            return f"{name} is missing"
        if weights[name].shape != parameter.shape:
            return f"{name} has shape {list(weights[name].shape)}, the config says {list(parameter.shape)}"
    unknown = sorted(set(weights) - every_name - buffers)
    return f"{unknown[0]} is not part of it" if unknown else None


def apply_masks(weights: dict[str, Tensor], masks: MaskSet | None) -> dict[str, Tensor]:
    """Return the weights with every pruned one set to exactly zero."""
    masked = dict(weights)
    for name, mask in masks.items() if masks is not None else ():
        if name not in weights or weights[name].shape != mask.shape:
            raise UserError(f"masks: {name} fits no weight of the checkpoint")
        masked[name] = weights[name].masked_fill(~mask, 0.0)
    return masked


def write_release(
    contents: CheckpointModel, model: PreTrainedModel, folder: Path, name: str, license_id: str
) -> None:
    """Write every file of a release into `folder`."""
    with quiet_libraries():
        model.save_pretrained(folder, max_shard_size="1TB")
    copy_tokenizer(contents.model_folder, folder)
    if contents.masks is not None:
        contents.masks.save(folder / MASK_FILE)
    report = inspect_folder(read_folder(folder))
    facts = {
        "architecture": report["architecture"],
        "step": contents.step,
        "data_fingerprint": contents.data_fingerprint,
        "metrics": contents.metrics,
        "weights_sha256": sha256_file(folder / WEIGHTS),
        "masks_digest": contents.masks.digest() if contents.masks is not None else None,
        "prunable": report["prunable"],
        "total": report["total"],
        "layers": [
            {key: row[key] for key in ("name", "shape", "weights", "zeros", "sparsity")}
            for row in report["layers"]
        ],
        "recipe": without_paths(contents.recipe),
        "versions": contents.versions,
        "datasets": trained_on(contents.recipe),
    }
    write_json(folder / SPARSITY_FILE, facts)
    write_text(folder / "README.md", model_card(facts, name, license_id))


def trained_on(recipe: dict[str, Any]) -> list[str]:
    """Return the hub's data sets that a run's prepared folder came from; none when the folder is gone."""
    path = (recipe.get("data") or {}).get("path")
    if not path:
        return []
    try:
        sources = read_manifest(Path(path)).sources
    except UserError:
        return []
    return hub_datasets([source.name for source in sources if source.kind == "dataset"])


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy every file beside the config that is not weights: the tokenizer, byte for byte."""
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name != "config.json" and path.name not in WEIGHT_FILES:
            shutil.copyfile(path, folder / path.name)


def verify_release(folder: Path) -> Report:
    """Read a release back the way a user will, and prove it.

    Returns:
        The inspection report.

    Raises:
        ReleaseError: non-zero weights outside the masks, NaN, files that do not belong together, or a
            folder that `AutoModel`, the architecture's own class or `AutoTokenizer` does not load whole.
    """
    try:
        report = inspect_folder(read_folder(folder))
    except UserError as error:
        raise ReleaseError(str(error)) from None
    problems = list(report["check"]["problems"])
    with quiet_libraries():
        try:
            AutoTokenizer.from_pretrained(folder)
            AutoModel.from_pretrained(folder)
            factory = getattr(transformers, report["architecture"])
            _, loading = factory.from_pretrained(folder, output_loading_info=True)
        except Exception as error:  # whatever a library raises here, the release is unusable
            raise ReleaseError(f"{folder}: does not load: {one_line(error)}") from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if loading[kind]:
            problems.append(
                f"{kind.replace('_', ' ')} on loading: {', '.join(sorted(map(str, loading[kind]))[:3])}"
            )
    if problems:
        raise ReleaseError(f"{folder}: " + "; ".join(problems))
    return report
