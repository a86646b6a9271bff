"""`launch doctor`: start the doctor's ranks like those of a training, and read what they report."""

import secrets
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.doctor.arrival import FOLDER
from launcher.doctor.report import Report, report_from_json
from launcher.local import launch_ranks
from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.errors import FailedError, UserError
from sparse_pretrain.files import read_json
from sparse_pretrain.preflight.paths import recipe_paths

REPORT = "report.json"
# Beside the ranks' own time-outs: for SLURM to find the nodes.
QUEUE_SECONDS = 900.0
# After the first rank has ended: each of those that gave up has reported by itself.
LATE_SECONDS = 10


def examine_here(recipe: TrainRecipe, nproc: int, timeout: float) -> Report:
    """Check this machine with `nproc` ranks.

    Args:
        recipe: whose paths and output are checked.
        nproc: number of ranks.
        timeout: seconds for the ranks to meet.

    Raises:
        UserError: the output cannot be written, or ranks and GPUs don't fit.
        FailedError: the ranks ended without a report.
    """
    out = fresh_report(recipe.output)
    launch_ranks(command(recipe, out, timeout), nproc, recipe.output / FOLDER)
    return read_report(out)


def examine_nodes(
    recipe: TrainRecipe,
    options: Sequence[str],
    timeout: float,
    environment: Mapping[str, str] | None = None,
) -> Report:
    """Check nodes of a cluster by `srun OPTIONS`, one task a rank.

    Args:
        recipe: whose paths and output are checked.
        options: of srun: nodes, tasks a node, partition.
        timeout: seconds for the ranks to meet.
        environment: of srun.

    Raises:
        FailedError: srun fails or does not end, or the ranks ended without a report.
    """
    out = fresh_report(recipe.output)
    minutes = max(5, round(timeout / 60) + 5)
    line = [
        "srun",
        "--kill-on-bad-exit=0",
        f"--wait={LATE_SECONDS}",
        f"--time={minutes}",
        *options,
        *command(recipe, out, timeout),
    ]
    try:
        done = subprocess.run(
            line,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=QUEUE_SECONDS + 60 * minutes,
            check=False,
            env=None if environment is None else dict(environment),
        )
    except FileNotFoundError:
        raise UserError("srun: no such program; is this a machine of the cluster?") from None
    except subprocess.TimeoutExpired:
        raise FailedError("srun: the nodes did not become free, or did not answer") from None
    if not out.is_file():
        said = [text.strip() for text in done.stderr.splitlines() if text.strip()]
        raise FailedError(f"srun: the ranks ended without a report: {said[-1] if said else done.returncode}")
    return read_report(out)


def fresh_report(run_folder: Path) -> Path:
    """Return where the report will be, without an old one in its place.

    Raises:
        UserError: the run folder cannot be written.
    """
    out = run_folder / FOLDER / REPORT
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"output = {run_folder}: cannot be written ({error.strerror})") from None
    return out.absolute()


def command(recipe: TrainRecipe, out: Path, timeout: float) -> list[str]:
    """Return a rank's command line; the report says how it went, not the exit code."""
    paths = [part for path in recipe_paths(recipe) for part in ("--path", str(path))]
    options = ["--timeout", str(timeout), "--meeting", secrets.token_hex(8), "--exit-zero", "--quiet"]
    rank = [sys.executable, "-m", "launcher.doctor.rank"]
    return [*rank, str(out), str(recipe.output.absolute()), *paths, *options]


def read_report(out: Path) -> Report:
    """Return the report that the ranks wrote.

    Raises:
        FailedError: there is none.
    """
    if not out.is_file():
        raise FailedError(f"the ranks ended without a report; see {out.parent / 'logs'}")
    return report_from_json(read_json(out))
