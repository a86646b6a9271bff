"""Several fine-tuning runs at a time, each in a process of its own with a GPU, or some of the cores, to itself."""

import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from sparse_pretrain.config.load import load_recipe, to_yaml
from sparse_pretrain.errors import FailedError, UserError
from sparse_pretrain.files import write_text
from sparse_pretrain.finetune.recipe import FinetuneRecipe
from sparse_pretrain.finetune.train import RANK_LOGS, finetune
from sparse_pretrain.orphans import end_with

LOG = "output.log"
# Exit codes of a run: a user's mistake, as everywhere, and weights that are not finite.
MISTAKE, DIVERGED = 2, 3
# What would make a run believe that it is one of several ranks.
OF_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def side_by_side(
    runs: Sequence[FinetuneRecipe], workers: int
) -> Generator[tuple[FinetuneRecipe, FloatingPointError | None], None, None]:
    """Fine-tune, `workers` runs at a time; yield each run when it has ended, with what it diverged by, if it did.

    Whatever ends this early (another error, Ctrl-C, SIGTERM, a caller that stops asking) stops all runs; they go on
    behind their last whole epoch.

    Raises:
        UserError: a run found a user's mistake.
        FailedError: a run failed.
    """
    children = Children(workers)
    with stopped_by_sigterm(), ThreadPoolExecutor(workers) as pool:
        waiting: dict[Future[FloatingPointError | None], FinetuneRecipe] = {
            pool.submit(children.run, recipe): recipe for recipe in runs
        }
        try:
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    recipe = waiting.pop(future)
                    yield recipe, future.result()
        finally:
            for future in waiting:
                future.cancel()
            children.stop()


class Children:
    """The processes of runs; there are never more than there are places for them."""

    def __init__(self, workers: int) -> None:
        """Make as many places as there are workers, each with its own share of the machine."""
        self._places: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        for number in range(workers):
            self._places.put(place(number, workers))
        self._lock = threading.Lock()
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def run(self, recipe: FinetuneRecipe) -> FloatingPointError | None:
        """Fine-tune in a process of its own and wait for it; return what the run diverged by, if it did.

        Raises:
            UserError: the run found a user's mistake.
            FailedError: the run failed.
        """
        environment = self._places.get()
        log = recipe.output / RANK_LOGS / LOG
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryDirectory() as folder, log.open("wb") as output:
                file = Path(folder) / "recipe.yaml"
                write_text(file, to_yaml(recipe))
                code = self._wait(file, environment, output)
        finally:
            self._places.put(environment)
        if code == 0:
            return None
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = said[-1] if said else "without a word"
        if code == DIVERGED:
            return FloatingPointError(last)
        if code == MISTAKE:
            raise UserError(last)
        raise FailedError(f"{recipe.output}: exit code {code}: {last}; see {log}")

    def stop(self) -> None:
        """End every process, and start none any more."""
        with self._lock:
            self._stopped = True
            for process in self._processes:
                process.terminate()

    def _wait(self, file: Path, environment: dict[str, str], output: Any) -> int:
        with self._lock:
            if self._stopped:
                return -signal.SIGTERM
            process = subprocess.Popen(
                command_of(file),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            self._processes.add(process)
        try:
            return process.wait()
        finally:
            with self._lock:
                self._processes.discard(process)


def command_of(file: Path) -> list[str]:
    """Return the command line of the process that runs a recipe file (`main`)."""
    return [sys.executable, "-m", "sparse_pretrain.finetune.side_by_side", str(file), str(os.getpid())]


def place(number: int, workers: int) -> dict[str, str]:
    """Return the environment of a run: one of the GPUs that we see, or an equal share of the cores."""
    environment = {name: value for name, value in os.environ.items() if name not in OF_RANKS}
    gpus = torch.cuda.device_count()
    if gpus:
        names = (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))).split(",")
        environment["CUDA_VISIBLE_DEVICES"] = names[number % gpus].strip()
    # All of them with a thread for each core would fight over the cores.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // workers)))
    return environment


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end what is inside as Ctrl-C does, with its clean-up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main() -> int:
    """Be the process of one run: `recipe.yaml`, and the process id of who started it."""
    file, parent = sys.argv[1:]
    end_with(int(parent))()
    try:
        finetune(load_recipe(file, [], FinetuneRecipe), Console(width=120))
    except FloatingPointError as error:
        print(error)
        return DIVERGED
    except UserError as error:
        print(error)
        return MISTAKE
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
