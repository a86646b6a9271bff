"""Real training steps of small models on random rows: what the cost model's predictions are held against."""

import ctypes
import statistics
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForPreTraining, PreTrainedTokenizerFast

from sparse_pretrain.config.base import Section
from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.costs.clock import RankStopwatch, Stopwatch, peak_bytes
from sparse_pretrain.data.manifest import Manifest, Shard, SpecialTokens, SplitCounts, write_manifest
from sparse_pretrain.files import sha256_file
from sparse_pretrain.training.build import build_trainer
from sparse_pretrain.training.inputs import open_inputs
from sparse_pretrain.training.world import World

VOCABULARY = 30522
ROWS = 64
STEPS = 1_000_000
# Steps in which the heap and caches still fill.
WARMUP = 2
HEAP_BYTES = 2**31
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SHAPES: dict[str, dict[str, int]] = {
    "minilm-l6": {
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    },
    "l4-256": {
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
    },
}
Mode = Literal["dense", "pruning", "pruning + teacher"]


class Case(Section):
    """One run of the real engine."""

    model: str = "minilm-l6"
    length: int = 128
    rows: int = 8
    passes: int = 1
    ranks: int = 1
    stage: int = 2
    mode: Mode = "dense"
    precision: str = "bf16"

    @property
    def name(self) -> str:
        """For people."""
        passes = f"{self.passes} x " if self.passes > 1 else ""
        return f"{self.model}, {passes}{self.rows} x {self.length}, ZeRO {self.stage}, {self.precision}, {self.mode}"


def prepare_rows(folder: Path, length: int) -> Path:
    """Write a prepared folder of full rows of random tokens; a step costs the same on any text."""
    table = {token: number for number, token in enumerate(SPECIALS)}
    table.update({f"word{number}": number for number in range(len(SPECIALS), VOCABULARY)})
    tokenizer = Tokenizer(models.WordLevel(table, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = dict(
        zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIALS, strict=True)
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder / "tokenizer")
    generator = np.random.default_rng(0)
    splits: dict[Any, SplitCounts] = {}
    for split in ("train", "validation"):
        tokens = generator.integers(len(SPECIALS), VOCABULARY, (ROWS, length), dtype=np.uint16)
        columns = {
            "input_ids": pa.FixedSizeListArray.from_arrays(pa.array(tokens.reshape(-1)), length),
            "length": pa.array([length] * ROWS, pa.uint16()),
        }
        path = folder / split / "shard-00000.arrow"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = pa.table(columns)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
            writer.write_table(rows)
        shard = Shard(
            file=f"{split}/{path.name}", rows=ROWS, bytes=path.stat().st_size, sha256=sha256_file(path)
        )
        splits[split] = SplitCounts(documents=ROWS, rows=ROWS, tokens=ROWS * length, shards=[shard])
    manifest = Manifest(
        format="packed",
        sequence_length=length,
        seed=0,
        vocabulary_size=VOCABULARY,
        tokenizer_sha256="random",
        special_tokens=SpecialTokens(pad=0, mask=4, cls=2, sep=3, never_masked=[0, 1, 2, 3, 4]),
        sources=[],
        splits=splits,
        settings={},
        versions={},
    )
    write_manifest(folder, manifest.with_fingerprint())
    return folder


def write_model(folder: Path, name: str) -> Path:
    """Write a model of a shape with random weights, which student and teacher start from."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("bert", vocab_size=VOCABULARY, **SHAPES[name])
    AutoModelForPreTraining.from_config(config).save_pretrained(folder)
    return folder


def recipe_of(case: Case, place: Path) -> TrainRecipe:
    """Return the recipe of a case; models and rows lie in `place`."""
    model = str(place / f"model-{case.model}")
    size = case.rows * case.passes * case.ranks
    recipe: dict[str, Any] = {
        "output": str(place / "run"),
        "steps": STEPS,
        "precision": case.precision,
        "model": {"source": model},
        "data": {"path": str(place / f"rows-{case.length}")},
        "batch": {"global_size": size, "micro_size": case.rows},
        "engine": {"stage": case.stage},
        "logging": {"every": STEPS, "histograms_every": 0},
    }
    if case.mode != "dense":
        ramp = {"ramp_end": STEPS // 2, "end": STEPS * 4 // 5, "frequency": 1000}
        recipe["pruning"] = {"target_sparsity": 0.85, **ramp}
    if case.mode == "pruning + teacher":
        recipe["distillation"] = {"teacher": model}
    return TrainRecipe.model_validate(recipe)


def give_memory_back() -> None:
    """Tell glibc's malloc to map and unmap every large tensor, as it does by itself.

    Training tells it not to (`training.heap`), and then the heap's holes grow for dozens of steps: the peak would say
    how long was waited.
    """
    mallopt = ctypes.CDLL(None).mallopt
    for name, value in ((-4, 65536), (-1, 2**17), (-2, 0), (-3, 2**17)):
        mallopt(name, value)


def fill_heap() -> None:
    """Touch and free what the heap would grow by in dozens of steps, so that a step is one of a run that is under way.

    Training keeps freed memory; until its heap has stopped growing, new pages cost up to half a step of system time.
    """
    torch.zeros(HEAP_BYTES, dtype=torch.uint8)


def real_steps(world: World, case: Case, place: str, count: int, tidy: bool = False) -> dict[str, Any]:
    """Take steps with the real trainer; return every step's seconds and the rank's peak memory.

    Args:
        world: the ranks.
        case: what to train.
        place: where models and rows are.
        count: steps behind the warm-up.
        tidy: give freed memory back, for a peak of what tensors need; such steps are slower.
    """
    recipe = recipe_of(case, Path(place))
    inputs = open_inputs(recipe)
    trainer, _ = build_trainer(recipe, inputs, world, case.precision, [])  # type: ignore[arg-type]
    if tidy:
        give_memory_back()
    else:
        fill_heap()
    update = 0.0
    if trainer.pruner is not None:
        watch = Stopwatch(world.device)
        trainer.pruner.after_step(0)
        update = watch.seconds()
    spent: list[float] = []
    walls: list[float] = []
    for number in range(count + WARMUP):
        world.barrier()
        together, began = RankStopwatch(world), time.perf_counter()
        trainer.train_step()
        if number:
            walls.append(time.perf_counter() - began)
        seconds = together.seconds()
        if number >= WARMUP:
            spent.append(seconds)
    return {
        "all": spent,
        "wall": statistics.median(walls) if walls else 0.0,
        "update": update,
        "peak_bytes": peak_bytes(world.device),
    }
