"""One rank of a benchmark: settings in, numbers out, both as files (the command line starts the ranks)."""

import gc
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist

from sparse_pretrain.bench.checkpoint_settings import CheckpointBenchSettings
from sparse_pretrain.bench.mask_settings import MaskBenchSettings
from sparse_pretrain.bench.train_settings import LossCheck, Measurement
from sparse_pretrain.files import write_json
from sparse_pretrain.telemetry.console import redirect_output
from sparse_pretrain.telemetry.rank_log import RankLog
from sparse_pretrain.training.world import World, join_world, rank_from_environment


def main(name: str, folder: Path) -> None:
    """Measure what `settings.json` says and, on rank 0, write `result.json` beside it."""
    rank, _, _ = rank_from_environment()
    redirect_output(RankLog(folder, rank), speaks=rank == 0)
    world = join_world()
    numbers = measure(name, world, folder)
    if world.is_first:
        write_json(folder / "result.json", numbers)
    # What still holds the process group, in cycles (DDP does), would abort when it dies after it.
    gc.collect()
    # No rank may leave while another one still talks to it.
    world.barrier()
    dist.destroy_process_group()


def measure(name: str, world: World, folder: Path) -> dict[str, Any]:
    """Run the named benchmark."""
    settings = (folder / "settings.json").read_text(encoding="utf-8")
    # DeepSpeed prints while it is imported: only now does that go to the log.
    if name == "masks":
        from sparse_pretrain.bench.masks import measure as measure_masks

        return measure_masks(world, MaskBenchSettings.model_validate_json(settings))
    if name == "train":
        from sparse_pretrain.bench.train_measure import measure as measure_train

        return measure_train(world, Measurement.model_validate_json(settings), folder)
    if name == "losses":
        from sparse_pretrain.bench.train_losses import measure as measure_losses

        return measure_losses(world, LossCheck.model_validate_json(settings), folder)
    from sparse_pretrain.bench.checkpoint import measure as measure_checkpoint

    return measure_checkpoint(world, CheckpointBenchSettings.model_validate_json(settings), folder)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
