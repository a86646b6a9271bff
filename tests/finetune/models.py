"""Tiny models for the tests: contents of a checkpoint, folders, labelled files."""

import csv
import random
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForPreTraining, PreTrainedModel

from sparse_pretrain.checkpoint.contents import CheckpointModel
from sparse_pretrain.finetune.recipe import FinetuneRecipe
from sparse_pretrain.models.prunable import prunable_weights
from sparse_pretrain.pruning.masks import MaskSet
from tests.tiny import WORDS, tiny_tokenizer
from tests.tiny_models import tiny_config

SPARSITY = 0.85


def smallest_pruned(weights: dict[str, torch.Tensor], sparsity: float = SPARSITY) -> MaskSet:
    """Masks that prune exactly `round(sparsity * n)` of the smallest weights of each matrix."""
    masks = {}
    for name, weight in weights.items():
        mask = torch.ones(weight.numel(), dtype=torch.bool)
        mask[weight.abs().flatten().argsort()[: round(sparsity * weight.numel())]] = False
        masks[name] = mask.reshape(weight.shape)
    return MaskSet(masks)


def tiny_contents(
    folder: Path, model_type: str = "bert", next_sentence: bool = False, sparse: bool = True
) -> CheckpointModel:
    """The contents of a checkpoint: dense masters and masks, as a training run leaves them."""
    torch.manual_seed(0)
    config = tiny_config(model_type)
    factory = AutoModelForPreTraining if next_sentence else AutoModelForMaskedLM
    model: PreTrainedModel = factory.from_config(config)
    config.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    return CheckpointModel(
        weights=weights,
        masks=smallest_pruned({name: weights[name] for name in prunable_weights(model)}) if sparse else None,
        model_folder=folder,
        step=100,
        recipe={
            "model": {"source": "google-bert/bert-base-uncased"},
            "pruning": {"target_sparsity": SPARSITY},
        },
        data_fingerprint="f1a9e7",
        metrics={"validation_mlm_loss": 2.5},
        versions={"torch": "2.13.0"},
    )


def dense_folder(folder: Path) -> Path:
    """A dense bare encoder, as hubs have them."""
    torch.manual_seed(0)
    AutoModel.from_config(tiny_config()).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def write_sentences(path: Path, rows: int, seed: int = 0) -> Path:
    """A sentence task that a tiny model learns: positive when most words come from the first half."""
    generator = random.Random(seed)
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["text", "label", "source"])
        for row in range(rows):
            half = row % 2
            own = WORDS[: len(WORDS) // 2] if half else WORDS[len(WORDS) // 2 :]
            words = generator.choices(own, k=generator.randint(3, 9)) + generator.choices(WORDS, k=1)
            writer.writerow([" ".join(words), ("bad", "good")[half], ("a", "b")[row % 4 // 2]])
    return path


def write_pairs(path: Path, rows: int, seed: int = 0) -> Path:
    """A pair task without header, tab-separated: the share of words the two sentences have in common, 0-5."""
    generator = random.Random(seed)
    lines = []
    for _ in range(rows):
        same = generator.randint(0, 4)
        first = generator.sample(WORDS, 4)
        second = first[:same] + generator.choices(WORDS, k=4 - same)
        lines.append(f"x\t{5 * same / 4}\t{' '.join(first)}\t{' '.join(second)}\n")
    path.write_text("".join(lines), encoding="utf-8")
    return path


def recipe(
    folder: Path, output: Path, model: str = "sparse", task: Any = None, sections: Any = None, **training: Any
) -> FinetuneRecipe:
    """A quick run on the sentence task (`task` replaces settings of it); `sections` replace other ones."""
    sentences = {
        "kind": "classification",
        "train": str(folder / "sentences.csv"),
        "text": "text",
        "label": "label",
        "labels": ["bad", "good"],
        "validation_size": 60,
    }
    fast = {
        "epochs": 3,
        "batch_size": 16,
        "learning_rate": 1e-2,
        "max_length": 32,
        "precision": "fp32",
        "dropout": 0.0,
    }
    values = {
        "output": str(output),
        "model": str(folder / model),
        "task": sentences | (task or {}),
        "training": fast | training,
    }
    return FinetuneRecipe.model_validate(values | (sections or {}))


def pairs(folder: Path) -> dict[str, Any]:
    """The task settings of the pairs' file."""
    return {
        "kind": "regression",
        "train": str(folder / "pairs.tsv"),
        "columns": ["id", "score", "one", "two"],
        "text": "one",
        "text_pair": "two",
        "label": "score",
        "labels": [],
        "label_scale": 5,
    }
