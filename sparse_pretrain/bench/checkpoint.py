"""What checkpoints cost: how long training waits, how fast they are written, how big they are, how fast read."""

import shutil
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, BertForMaskedLM, BertTokenizer

from sparse_pretrain.bench.checkpoint_settings import CheckpointBenchSettings
from sparse_pretrain.bench.mask_settings import SHAPES, MaskBenchSettings
from sparse_pretrain.bench.masks import build_pruner, device_name, random_batch
from sparse_pretrain.checkpoint.integrity import newest_whole
from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.config.training import CheckpointSection
from sparse_pretrain.data.batch import Batch
from sparse_pretrain.distillation.objective import Objective
from sparse_pretrain.models.pretraining import PretrainingModel
from sparse_pretrain.models.prunable import prunable_weights
from sparse_pretrain.training.callback import Callback, CheckpointReport
from sparse_pretrain.training.deepspeed_config import deepspeed_config
from sparse_pretrain.training.engine import Engine
from sparse_pretrain.training.precision import resolve_precision
from sparse_pretrain.training.restore import restore
from sparse_pretrain.training.saver import Saver
from sparse_pretrain.training.trainer import Trainer
from sparse_pretrain.training.world import World

# fp32 master and two moments; masks take one bit.
LEAST_BYTES = 12
DD_BLOCK = 2**24


class RandomLoader:
    """The same random tokens at every step: what a checkpoint costs does not depend on them."""

    def __init__(self, batch: Batch) -> None:
        self.samples_seen = 0
        self._batch = batch

    def next_step(self) -> list[Batch]:
        """Return the batch."""
        self.samples_seen += 1
        return [self._batch]

    def state_dict(self) -> dict[str, Any]:
        """Return a position."""
        return {"samples_seen": self.samples_seen, "fingerprint": "random"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a position."""
        self.samples_seen = int(state["samples_seen"])


class Reports(Callback):
    """Keeps what was said of the saves."""

    def __init__(self) -> None:
        self.saves: list[CheckpointReport] = []

    def on_checkpoint(self, report: CheckpointReport) -> None:
        """Keep it."""
        self.saves.append(report)


def measure(world: World, settings: CheckpointBenchSettings, folder: Path) -> dict[str, Any]:
    """Save in turns synchronously, with `dd`, and asynchronously; then restore. Collective.

    Returns:
        `async_stall_ratio`: seconds that training stands still for an asynchronous save over those of a
        synchronous one. `write_ratio`: bytes a second of a synchronous save over those of `dd` with fsync, one
        stream of as many bytes on the same disk. `resume_s`: seconds to find the newest checkpoint, check every
        checksum and restore it. `size_ratio`: its bytes over 12 a parameter and one bit a prunable weight.
        Medians over rounds, `dd` beside each.
    """
    reports = Reports()
    trainer = build_trainer(world, settings, reports)
    savers = {
        kind: build_saver(folder / kind, trainer, asynchronous=kind == "asynchronous")
        for kind in ("synchronous", "asynchronous")
    }
    fill_moments(trainer.engine)
    plain = [timed_step(trainer) for _ in range(3)]
    rounds = [
        one_round(trainer, savers, reports, folder, statistics.median(plain[1:]))
        for _ in range(settings.rounds + 1)
    ]
    # The first one of each kind takes its buffers' memory from the system.
    numbers = {key: statistics.median(one[key] for one in rounds[1:]) for key in rounds[0]}
    resume = time_resume(trainer, savers["synchronous"])
    for saver in savers.values():
        saver.close()
    parameters = sum(shape.numel() for shape in trainer.engine.shapes.values())
    weights = sum(shape.numel() for shape in trainer.pruner.masks.shapes.values()) if trainer.pruner else 0
    return {
        "async_stall_ratio": numbers["async_stall_seconds"] / numbers["sync_seconds"],
        "write_ratio": numbers["bytes"] / numbers["sync_seconds"] / numbers["dd_bytes_per_second"],
        "resume_s": resume,
        "size_ratio": numbers["bytes"] / (LEAST_BYTES * parameters + weights / 8),
        "step_seconds": statistics.median(plain[1:]),
        **numbers,
        "parameters": parameters,
        "ranks": world.size,
        "threads_per_rank": torch.get_num_threads(),
        "device": device_name(world.device),
        **settings.model_dump(),
    }


def one_round(
    trainer: Trainer, savers: dict[str, Saver], reports: Reports, folder: Path, step_seconds: float
) -> dict[str, float]:
    """Save synchronously, run `dd`, save asynchronously while training; all ranks get rank 0's numbers."""
    trainer.saver = None
    trainer.world.barrier()
    began = time.perf_counter()
    savers["synchronous"].begin(trainer)
    synchronous = time.perf_counter() - began
    numbers = {"sync_seconds": synchronous}
    if trainer.world.is_first:
        numbers["bytes"] = float(reports.saves[-1].bytes)
        numbers["dd_bytes_per_second"] = dd_throughput(folder / "dd", reports.saves[-1].bytes)
    trainer.world.barrier()
    saver = trainer.saver = savers["asynchronous"]
    saver.begin(trainer)
    steps = []
    written = 0.0
    while written < trainer.world.size:
        began = time.perf_counter()
        _, agreed = trainer.train_step()
        steps.append(time.perf_counter() - began - step_seconds)
        written = agreed.written
    saver.commit(trainer)
    trainer.saver = None
    if trainer.world.is_first:
        numbers["async_stall_seconds"] = reports.saves[-1].waited
        numbers["async_seconds"] = reports.saves[-1].seconds
    numbers["async_slowdown_seconds"] = sum(steps)
    return trainer.world.broadcast(numbers)  # type: ignore[no-any-return]


def fill_moments(engine: Engine) -> None:
    """Give Adam moments without zeros, as after many steps on real text: zeros would be left out."""
    engine.create_moments(1)
    generator = torch.Generator(engine.device).manual_seed(0)
    for _, fragment in engine.fragments():
        for moment in fragment.moments.values():
            moment.uniform_(1e-9, 1e-8, generator=generator)


def timed_step(trainer: Trainer) -> float:
    """Take a step; return its seconds."""
    began = time.perf_counter()
    trainer.train_step()
    return time.perf_counter() - began


def time_resume(trainer: Trainer, saver: Saver) -> float:
    """Find, check and restore the newest checkpoint; return the seconds until the last rank has done so."""
    world = trainer.world
    world.barrier()
    began = time.perf_counter()
    newest, _ = newest_whole(saver.checkpoints, world, print)
    if newest is None:
        raise RuntimeError(f"{saver.checkpoints}: nothing was saved")
    restore(trainer, newest, saver.teacher_identity)
    world.barrier()
    return time.perf_counter() - began


def dd_throughput(path: Path, size: int) -> float:
    """Return the bytes a second of `dd` with fsync, writing about `size` bytes to `path`."""
    count = max(1, round(size / DD_BLOCK))
    command = ["dd", "if=/dev/zero", f"of={path}", f"bs={DD_BLOCK}", f"count={count}", "conv=fsync"]
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    seconds = time.perf_counter() - began
    path.unlink()
    return count * DD_BLOCK / seconds


def build_saver(folder: Path, trainer: Trainer, asynchronous: bool) -> Saver:
    """Return a saver into a folder of its own, which keeps one checkpoint."""
    shutil.rmtree(folder, ignore_errors=True)
    section = CheckpointSection.model_validate({"asynchronous": asynchronous, "keep": {"last": 1}})
    config = AutoConfig.for_model("bert", **SHAPES["tiny"])
    tokenizer = BertTokenizer(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4})
    return Saver(folder / "checkpoints", section, None, tokenizer, config)


def build_trainer(world: World, settings: CheckpointBenchSettings, reports: Reports) -> Trainer:
    """Build a BERT with random weights that is being pruned, on random tokens."""
    shape = MaskBenchSettings(
        model=settings.model, rows=settings.rows, length=settings.length, stage=settings.stage
    )
    recipe = TrainRecipe.model_validate(
        {
            "output": "bench",
            "steps": 10**6,
            "model": {"config": {"model_type": "bert"}},
            "data": {"path": "bench"},
            "batch": {"global_size": settings.rows * world.size, "micro_size": settings.rows},
            "engine": {"stage": settings.stage},
        }
    )
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "bert",
        attn_implementation="eager" if world.device.type == "cpu" else "sdpa",
        **SHAPES[settings.model],
    )
    model = BertForMaskedLM(config)  # type: ignore[arg-type]
    names = {name: weight.shape for name, weight in prunable_weights(model).items()}
    settings_of_deepspeed = deepspeed_config(recipe, resolve_precision("auto"), world.size)
    engine = Engine(PretrainingModel(model), recipe.optimizer, settings_of_deepspeed)
    pruner = build_pruner(engine, names, shape, packed=False)
    loader = RandomLoader(random_batch(shape, world))
    trainer = Trainer(recipe, world, engine, [], Objective(None, ()), loader, pruner, list, [reports])
    pruner.after_step(0)
    return trainer
