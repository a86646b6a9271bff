"""What launching costs: from `sbatch` to step 1 on two nodes, against the least that any program needs there.

    python -m tests.slurm.overhead [--rounds 3]

Starts a cluster of two nodes on this machine, and in turns, so that other work on it hurts all alike: a bare
`srun python -c "import deepspeed; init_process_group"`, the same with the library that models come from, and the tiny
recipe by slurm/train.sbatch. Medians; on a busy machine only the ratios mean something.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from launcher.environment import free_port
from launcher.lab import Lab, slurm_lab
from launcher.restart import RECORD, read_lines
from tests.slurm.jobs import submit, text
from tests.tiny import read_rows, tiny_prepared

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 180.0
BARE = """
import {libraries}
import os, pathlib, sys, time, torch.distributed as dist
rank = int(os.environ["SLURM_PROCID"])
dist.init_process_group("gloo", rank=rank, world_size=int(os.environ["SLURM_NTASKS"]))
if rank == 0:
    pathlib.Path(sys.argv[1]).write_text(str(time.time()))
"""
LIBRARIES = {"bare": "deepspeed", "bare_with_models": "deepspeed, transformers.modeling_utils"}
SETTINGS = ("steps=10", "logging.histograms_every=0")


def time_bare(lab: Lab, folder: Path, libraries: str) -> float:
    """Return the seconds until two ranks on two nodes have imported libraries and found each other."""
    out = folder / "arrived"
    # On this machine both nodes are: any port that is free here.
    rendezvous = {"MASTER_ADDR": "node1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", BARE.format(libraries=libraries), str(out)]
    started = time.time()
    subprocess.run(
        ["srun", "--nodes=2", "--ntasks=2", *command],
        env=lab.environment | rendezvous,
        capture_output=True,
        timeout=SECONDS,
        check=True,
    )
    return float(out.read_text()) - started


def time_run(lab: Lab, folder: Path) -> dict[str, float]:
    """Return how many seconds after `sbatch` had accepted the job each stretch on the way to step 1 took."""
    run = folder / "run"
    job = submit(
        *(lab, "--nodes=2", "--time=60", f"--chdir={ROOT}", f"--output={folder / 'job.out'}"),
        *(
            "slurm/train.sbatch",
            "train-tiny",
            f"data.path={folder.parent / 'data'}",
            f"output={run}",
            *SETTINGS,
        ),
    )
    accepted = time.time()
    job.wait_for("COMPLETED", "FAILED", seconds=SECONDS)
    if job.state != "COMPLETED":
        raise SystemExit(text(folder / "job.out"))
    ends = {
        "scheduled_and_policy": read_lines(run / "slurm" / RECORD)[0]["time"],
        # With srun. A rank opens its log when it has imported everything but DeepSpeed, and checked recipe and data.
        "libraries_and_checks": (run / "logs").stat().st_mtime,
        "deepspeed_and_models": (run / "provenance.json").stat().st_mtime,
        "first_step": read_rows(run, "train")[0]["time"],
    }
    times = [accepted, *ends.values()]
    parts = {name: end - begin for name, begin, end in zip(ends, times, times[1:], strict=False)}
    return {"step_1": times[-1] - accepted, **parts}


def measure(lab: Lab, folder: Path, rounds: int) -> dict[str, float]:
    """Return medians in seconds, and the two ratios."""
    tiny_prepared(folder / "data")
    rows: list[dict[str, float]] = []
    # The first one reads files that the others find in memory.
    for number in range(rounds + 1):
        place = folder / f"round-{number}"
        place.mkdir()
        bare = {name: time_bare(lab, place, libraries) for name, libraries in LIBRARIES.items()}
        rows.append(bare | time_run(lab, place))
    medians = {name: statistics.median(row[name] for row in rows[1:]) for name in rows[0]}
    ratios = {
        f"step_1_over_{name}": statistics.median(row["step_1"] / row[name] for row in rows[1:])
        for name in LIBRARIES
    }
    return {**ratios, **medians}


def main() -> None:
    """Print the numbers as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="overhead-") as name, slurm_lab(Path(name) / "lab") as lab:
        os.chdir(ROOT)
        print(
            json.dumps(
                {key: round(value, 2) for key, value in measure(lab, Path(name), rounds).items()}, indent=2
            )
        )


if __name__ == "__main__":
    main()
