"""One rank of `bench train`: steps of one side in one mode, timed; and what the machine could do."""

import resource
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoTokenizer

from sparse_pretrain.bench.clock import synchronise
from sparse_pretrain.bench.masks import device_name
from sparse_pretrain.bench.train_flops import measure_ceiling, step_flops
from sparse_pretrain.bench.train_ours import OurStep
from sparse_pretrain.bench.train_profile import profiled
from sparse_pretrain.bench.train_reference import ReferenceStep
from sparse_pretrain.bench.train_settings import Measurement
from sparse_pretrain.data.manifest import read_manifest
from sparse_pretrain.data.masking import TokenTable
from sparse_pretrain.data.shards import PreparedSplit
from sparse_pretrain.training.precision import DTYPES
from sparse_pretrain.training.world import World

MASKED_SHARE = 0.15


def measure(world: World, measurement: Measurement, folder: Path) -> dict[str, Any]:
    """Time steps on all ranks together; every rank gets the same numbers.

    Returns:
        `seconds` of a step (median, all ranks together), `tokens_per_s` (real tokens of all ranks), `fill`,
        `peak_bytes` (the largest rank's), `flops_per_s` (what the step must compute, over its time, all ranks)
        and `ceiling_flops_per_s` (torch's matrix product on all ranks at once, same precision). Where a profile was
        asked for, `profile`: see `profiled`.
    """
    case = measurement.case
    ceiling = world.sum([measure_ceiling(world.device, DTYPES[case.precision])])[0]
    step = build(world, measurement, folder)
    seconds, tokens, slots = [], 0, 0
    for number in range(case.warmup + case.steps):
        world.barrier()
        synchronise(world.device)
        began = time.perf_counter()
        real, passed = step()
        synchronise(world.device)
        world.barrier()
        if number >= case.warmup:
            seconds.append(time.perf_counter() - began)
            tokens, slots = tokens + real, slots + passed
    median = statistics.median(seconds)
    all_tokens, all_slots = (value / case.steps for value in world.sum([tokens, slots]))
    teacher = measurement.mode == "pruning + teacher"
    # What must be computed is the same for both sides: the head where a loss needs it.
    logits = all_slots if teacher else MASKED_SHARE * all_slots
    config = AutoConfig.from_pretrained(measurement.start)
    keys = mean_keys(PreparedSplit(Path(measurement.packed), "train"))
    flops = step_flops(config, int(all_slots), keys, int(logits), teacher)
    found = {"profile": profiled(step, world.device)} if measurement.profile else {}
    return {
        **found,
        "seconds": median,
        "tokens_per_s": all_tokens / median,
        "fill": all_tokens / all_slots,
        "peak_bytes": int(max(world.gather(peak_bytes(world.device)))),
        "flops_per_s": flops / median,
        "ceiling_flops_per_s": ceiling,
        "device": device_name(world.device),
    }


def mean_keys(split: PreparedSplit) -> float:
    """Return how many tokens a token attends to, on average over a split of rows of several sequences."""
    rows = split.gather(np.arange(len(split)))
    if rows.starts is None:
        return float(np.square(rows.lengths).sum() / rows.lengths.sum())
    ends = np.concatenate([rows.starts.flat[1:], [0]])
    last = np.cumsum(rows.sequences) - 1
    ends[last] = rows.lengths
    sizes = ends - rows.starts.flat
    return float(np.square(sizes).sum() / sizes.sum())


def build(world: World, measurement: Measurement, folder: Path) -> OurStep | ReferenceStep:
    """Return the side's step, ready."""
    if measurement.side == "ours":
        return OurStep(world, measurement, folder)
    manifest = read_manifest(Path(measurement.pairs))
    tokenizer = AutoTokenizer.from_pretrained(Path(measurement.pairs) / "tokenizer")
    table = TokenTable.of(tokenizer, manifest.special_tokens, manifest.vocabulary_size)
    torch.manual_seed(world.rank)
    return ReferenceStep(world, measurement, table)


def peak_bytes(device: torch.device) -> float:
    """Return the most memory this rank has held: of the GPU, or of the process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
