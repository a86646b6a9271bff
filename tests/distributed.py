"""Run a function of a test on several gloo ranks, each a process of its own."""

import importlib
import multiprocessing
import os
import pickle
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from sparse_pretrain.training.world import free_port

ROOT = Path(__file__).resolve().parents[1]
CONTEXT = multiprocessing.get_context("forkserver")
# Not the server of the process, which data preparation uses with other modules and more threads.
RANK_SERVER = forkserver.ForkServer()
RANK_SERVER.set_forkserver_preload(["tests.preloaded"])


def run_distributed(
    function: Callable[..., Any], world_size: int, *arguments: Any, timeout: float = 480
) -> list[Any]:
    """Call `function(world, *arguments)` on every rank; return the ranks' results in order.

    `function` must be importable (a module-level function). A rank that fails fails the test with its
    output.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "task").write_bytes(pickle.dumps((function.__module__, function.__qualname__, arguments)))
        port = str(free_port())
        with ranks_from_their_server():
            ranks = [
                CONTEXT.Process(target=be_rank, args=(folder, rank, environment_of(rank, world_size, port)))
                for rank in range(world_size)
            ]
            for process in ranks:
                process.start()
        deadline = time.monotonic() + timeout
        try:
            for process in ranks:
                process.join(max(0.0, deadline - time.monotonic()))
        finally:
            late = [process for process in ranks if process.exitcode is None]
            for process in late:
                process.kill()
                process.join()
        codes = [process.exitcode for process in ranks]
        logs = [(folder / f"log-{rank}").read_text(errors="replace")[-4000:] for rank in range(world_size)]
        assert not any(codes), "\n".join(
            f"--- rank {r} exit {c}\n{log}" for r, (c, log) in enumerate(zip(codes, logs, strict=True))
        )
        return [pickle.loads((folder / f"result-{rank}").read_bytes()) for rank in range(world_size)]


def environment_of(rank: int, world_size: int, port: str) -> dict[str, str]:
    """Return what torchrun would set for a rank."""
    return {
        **os.environ,
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }


@contextmanager
def ranks_from_their_server() -> Iterator[None]:
    """Have processes forked from one that has imported what ranks need, and has one thread: OpenMP reads that once."""
    before = os.environ.get("OMP_NUM_THREADS"), forkserver.connect_to_new_process
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        RANK_SERVER.ensure_running()
        forkserver.connect_to_new_process = RANK_SERVER.connect_to_new_process
        yield
    finally:
        forkserver.connect_to_new_process = before[1]
        if before[0] is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before[0]


def be_rank(folder: Path, rank: int, environment: dict[str, str]) -> None:
    """Be one rank: its output goes to a file, its result to another one."""
    log = os.open(folder / f"log-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    from sparse_pretrain.training.world import join_world

    module, name, arguments = pickle.loads((folder / "task").read_bytes())
    function = getattr(importlib.import_module(module), name)
    result = function(join_world(), *arguments)
    (folder / f"result-{rank}").write_bytes(pickle.dumps(result))
    sys.stdout.flush()
    # As a rank ends whose main function returns; not through the clean-up of what it was forked from.
    os._exit(0)
