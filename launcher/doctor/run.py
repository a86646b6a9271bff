"""`launch doctor`: start the doctor's ranks like those of a training, and read what they report."""

import re
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from launcher.doctor.arrival import ABSENT, FOLDER
from launcher.doctor.report import Report, report_from_json
from launcher.doctor.srun import on_site
from launcher.job import programs
from launcher.local import launch_ranks
from launcher.site import Site
from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.errors import FailedError, UserError
from sparse_pretrain.files import read_json
from sparse_pretrain.preflight.findings import Finding
from sparse_pretrain.preflight.paths import recipe_paths

REPORT = "report.json"
# Beside the ranks' own time-outs: for SLURM to find the nodes.
QUEUE_SECONDS = 900.0
# After the first report: a rank that gives up later, and knows more, may still replace it.
LATE_SECONDS = 10.0
POLL_SECONDS = 0.1
LOG = "srun.log"
LABELLED = re.compile(r"(\d+): (.*\S.*)")


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
    site: Site,
    options: Sequence[str],
    timeout: float,
    environment: Mapping[str, str] | None = None,
) -> Report:
    """Check nodes of a cluster by `srun OPTIONS`, one task a rank.

    Args:
        recipe: whose paths and output are checked.
        site: how ranks start on the cluster; where, is in `options`.
        options: of srun: nodes, tasks a node, partition.
        timeout: seconds for the ranks to meet.
        environment: of srun.

    Raises:
        UserError: there is no srun here, or the run folder cannot be written.
        FailedError: srun fails or does not end, or the ranks ended without a report.
    """
    out = fresh_report(recipe.output)
    minutes = max(5, round(timeout / 60) + 5)
    folder = programs(site, Path(sys.executable))
    python = "python3" if folder is None else f"{folder}/python3"
    line = [
        *("srun", "--label", "--kill-on-bad-exit=0", "--wait=0", f"--time={minutes}"),
        *options,
        *on_site(site, command(recipe, out, timeout, python)),
    ]
    log = out.with_name(LOG)
    with log.open("wb") as output:
        try:
            srun = subprocess.Popen(
                line,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=None if environment is None else dict(environment),
            )
        except FileNotFoundError:
            raise UserError("srun: no such program; is this a machine of the cluster?") from None
        try:
            wait_for_report(srun, out, QUEUE_SECONDS + 60 * minutes)
        finally:
            end(srun)
    said = [text.strip() for text in log.read_text(errors="replace").splitlines() if text.strip()]
    if not out.is_file():
        raise FailedError(
            f"srun: the ranks ended without a report: {said[-1] if said else srun.returncode} ({log})"
        )
    return with_last_words(read_report(out), said)


def wait_for_report(srun: "subprocess.Popen[bytes]", out: Path, seconds: float) -> None:
    """Wait until srun ends, or the report lies there and ranks that are late had their time.

    Raises:
        FailedError: neither happens.
    """
    deadline = time.monotonic() + seconds
    reported = None
    while srun.poll() is None:
        now = time.monotonic()
        if reported is None and out.is_file():
            reported = now
        if reported is not None and now > reported + LATE_SECONDS:
            return
        if now > deadline:
            raise FailedError("srun: the nodes did not become free, or did not answer")
        time.sleep(POLL_SECONDS)


def end(process: "subprocess.Popen[bytes]") -> None:
    """End srun, which ends its tasks and gives the nodes back."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(LATE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def with_last_words(report: Report, said: Sequence[str]) -> Report:
    """Return a report in which a rank that did not arrive says what it last printed, if it did.

    Args:
        report: of the ranks.
        said: all lines of srun and of its tasks, with their numbers in front (`srun --label`).
    """
    last = {found[1]: found[2] for text in said if (found := LABELLED.fullmatch(text))}

    def told(finding: Finding) -> Finding:
        words = last.get(str(finding.rank)) if finding.what.startswith(ABSENT) else None
        return finding if words is None else replace(finding, what=f"{finding.what}; it said: {words}")

    return replace(report, findings=tuple(told(finding) for finding in report.findings))


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


def command(recipe: TrainRecipe, out: Path, timeout: float, python: str = sys.executable) -> list[str]:
    """Return a rank's command line; the report says how it went, not the exit code."""
    paths = [part for path in recipe_paths(recipe) for part in ("--path", str(path))]
    options = ["--timeout", str(timeout), "--meeting", secrets.token_hex(8), "--exit-zero", "--quiet"]
    rank = [python, "-m", "launcher.doctor.rank"]
    return [*rank, str(out), str(recipe.output.absolute()), *paths, *options]


def read_report(out: Path) -> Report:
    """Return the report that the ranks wrote.

    Raises:
        FailedError: there is none.
    """
    if not out.is_file():
        raise FailedError(f"the ranks ended without a report; see {out.parent / 'logs'}")
    return report_from_json(read_json(out))
