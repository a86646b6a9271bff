"""Run a function of a test on several gloo ranks, each a process of its own."""

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparse_pretrain.training.world import free_port

ROOT = Path(__file__).resolve().parents[1]


def run_distributed(
    function: Callable[..., Any], world_size: int, *arguments: Any, timeout: float = 480
) -> list[Any]:
    """Call `function(world, *arguments)` on every rank; return the ranks' results in order.

    `function` must be importable (a module-level function). A rank that fails fails the test with its
    output.
    """
    with tempfile.TemporaryDirectory() as folder:
        task = Path(folder) / "task"
        task.write_bytes(pickle.dumps((function.__module__, function.__qualname__, arguments)))
        port = str(free_port())
        processes = []
        for rank in range(world_size):
            environment = {
                **os.environ,
                "RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "LOCAL_RANK": str(rank),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "OMP_NUM_THREADS": "1",
            }
            log = (Path(folder) / f"log-{rank}").open("wb")
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.distributed", folder, str(rank)],
                    cwd=ROOT,
                    env=environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
        try:
            codes = [process.wait(timeout) for process in processes]
        finally:
            for process in processes:
                process.kill()
        logs = [
            (Path(folder) / f"log-{rank}").read_text(errors="replace")[-4000:] for rank in range(world_size)
        ]
        assert not any(codes), "\n".join(
            f"--- rank {r} exit {c}\n{log}" for r, (c, log) in enumerate(zip(codes, logs, strict=True))
        )
        return [pickle.loads((Path(folder) / f"result-{rank}").read_bytes()) for rank in range(world_size)]


def main() -> None:
    """Be one rank."""
    import importlib

    from sparse_pretrain.training.world import join_world

    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    module, name, arguments = pickle.loads((folder / "task").read_bytes())
    function = getattr(importlib.import_module(module), name)
    result = function(join_world(), *arguments)
    (folder / f"result-{rank}").write_bytes(pickle.dumps(result))


if __name__ == "__main__":
    main()
