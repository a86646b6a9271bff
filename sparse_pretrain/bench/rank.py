"""One rank of a benchmark: settings in, numbers out, both as files (the command line starts the ranks)."""

import sys
from pathlib import Path

import torch.distributed as dist

from sparse_pretrain.bench.mask_settings import MaskBenchSettings
from sparse_pretrain.files import write_json
from sparse_pretrain.telemetry.console import redirect_output
from sparse_pretrain.telemetry.rank_log import RankLog
from sparse_pretrain.training.world import join_world, rank_from_environment


def main(folder: Path) -> None:
    """Measure what `settings.json` says and, on rank 0, write `result.json` beside it."""
    rank, _, _ = rank_from_environment()
    redirect_output(RankLog(folder, rank), speaks=rank == 0)
    # DeepSpeed prints while it is imported: only now does that go to the log.
    from sparse_pretrain.bench.masks import measure

    settings = MaskBenchSettings.model_validate_json((folder / "settings.json").read_text(encoding="utf-8"))
    world = join_world()
    numbers = measure(world, settings)
    if world.is_first:
        write_json(folder / "result.json", numbers)
    # No rank may leave while another one still talks to it.
    world.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
