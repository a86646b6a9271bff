"""A rendered job into SLURM's queue, and what was submitted into the run's folder."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.job import SLURM_FOLDER, Job, programs
from launcher.query import Job as QueuedJob
from launcher.query import NoSlurmError, SlurmError, find_my_jobs
from launcher.render import render
from launcher.restart import SUBMITTED, append, read_lines
from launcher.site import Site
from sparse_pretrain.config.load import load_recipe
from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.data.manifest import MANIFEST_FILE
from sparse_pretrain.errors import FailedError, UserError
from sparse_pretrain.files import atomic_path, write_json

SCRIPT = "job.sbatch"
JOB = "job.json"
ANSWER_SECONDS = 60.0
# What of SLURM's environment is the cluster's, not that of a job in which we may be running.
CLUSTER_VARIABLES = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")


@dataclass(frozen=True)
class Request:
    """What the user asked for on the command line; None: the site's or the recipe's.

    Attributes:
        recipe: a file or the name of a shipped recipe.
        overrides: `key=value` settings on top.
        nodes: number of nodes.
        ranks_per_node: ranks on each.
        min_nodes: with how few it may start again.
        time: time limit of a job.
        name: the job's name; default: the run folder's.
        allow_change: continue a run although its recipe now trains something else.
    """

    recipe: str
    overrides: tuple[str, ...] = ()
    nodes: int | None = None
    ranks_per_node: int | None = None
    time: str | None = None
    name: str | None = None
    allow_change: bool = False
    min_nodes: int | None = None


@dataclass(frozen=True)
class Submitted:
    """What `RUN/slurm/job.json` and every line of `jobs.jsonl` hold.

    Attributes:
        job_id: SLURM's number.
        name: as squeue shows it.
        recipe: as the user wrote it.
        overrides: as the user wrote them.
        nodes: number of nodes.
        ranks_per_node: ranks on each.
        site: file of the site's settings, None where there is none.
        submitted: unix time.
        command: what submitted it, the program first.
        after: the job of the chain that must end first.
    """

    job_id: str
    name: str
    recipe: str
    overrides: list[str]
    nodes: int
    ranks_per_node: int
    site: str | None
    submitted: float
    command: list[str]
    after: str | None


def prepare_job(request: Request, site: Site, folder: Path) -> tuple[Job, TrainRecipe]:
    """Return the job that a request means on a site, and its validated recipe.

    Args:
        request: the command line.
        site: settings for what it leaves open.
        folder: where relative paths start.

    Raises:
        UserError: the recipe or a number is wrong.
    """
    recipe = load_recipe(request.recipe, request.overrides, TrainRecipe)
    output = (folder / recipe.output).absolute()
    job = Job(
        name=output.name if request.name is None else request.name,
        recipe=request.recipe,
        overrides=request.overrides,
        output=output,
        folder=folder.absolute(),
        nodes=site.nodes if request.nodes is None else request.nodes,
        ranks_per_node=site.ranks_per_node if request.ranks_per_node is None else request.ranks_per_node,
        time=site.time if request.time is None else request.time,
        steps=recipe.steps,
        bin=programs(site, Path(sys.executable)),
        allow_change=request.allow_change,
        min_nodes=request.min_nodes,
    )
    return job, recipe


def check_before_the_queue(site: Site, job: Job, recipe: TrainRecipe) -> None:
    """Find what would end the job in its first minute, without a cluster: sizes, model, patterns, data.

    Raises:
        UserError: with what is wrong.
    """
    import torch

    from sparse_pretrain.training.plan import plan

    # A login node without a GPU says nothing about the nodes.
    elsewhere = recipe.precision == "fp16" and not torch.cuda.is_available()
    plan(recipe.model_copy(update={"precision": "fp32"}) if elsewhere else recipe, job.ranks)
    key = "data.path" if recipe.data.path is not None else "data.mix"
    for folder in recipe.data.folders:
        data = job.folder / folder
        if not sees_other_paths(site, data) and not (data / MANIFEST_FILE).is_file():
            raise UserError(
                f"{job.recipe}: {key} = {str(folder)!r}: no {MANIFEST_FILE} there; prepare it first "
                "(sparse-pretrain data prepare), on a disk that all nodes see"
            )


def sees_other_paths(site: Site, path: Path) -> bool:
    """Say whether nodes see another file than we do under `path`: in a container, or on their own disks."""
    return site.container.kind != "none" or (
        site.local_disk is not None and path.is_relative_to(site.local_disk)
    )


def submit(
    site: Site,
    site_file: str | None,
    job: Job,
    chain: int = 0,
    force: bool = False,
    needs: Sequence[str] = (),
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
) -> list[Submitted]:
    """Write the job's script into its run folder, submit it and its chain, and record each at once.

    Args:
        site: the cluster.
        site_file: where its settings come from.
        job: what to run.
        chain: number of follow-up jobs, each starting when the one before has ended, however it did; one that
            finds all steps done ends at once.
        force: submit although a job of this run is queued or running.
        needs: numbers of jobs that must have succeeded before the first starts.
        say: shows a line to the user.

    Raises:
        UserError: a job of this run is queued or running, or SLURM refuses what was asked for.
        FailedError: SLURM does not answer.
    """
    script_text = render(site, job)
    if chain < 0:
        raise UserError(f"--chain = {chain}: must be at least 0")
    alive = living_jobs(job.output)
    if alive and not force:
        known = ", ".join(f"{number} ({each.state.lower()})" for number, each in alive.items())
        raise UserError(
            f"{job.output}: a job of this run is still in the queue: {known}; scancel it first, or --force"
        )
    script = write_script(job.slurm_folder, script_text)
    done: list[Submitted] = []
    for _ in range(chain + 1):
        after = done[-1].job_id if done else None
        command = ["sbatch", "--parsable", *dependency(needs, after), str(script)]
        try:
            number = submit_script(command, job.folder)
        except UserError as error:
            if done:
                raise UserError(
                    f"{error}\nin the queue already: {', '.join(each.job_id for each in done)}"
                ) from None
            raise
        done.append(record(site_file, job, number, command, after))
    if chain == 0 and not site.requeue:
        say("this site's jobs do not requeue: --chain N submits N more that go on where this one ends")
    return done


def dependency(needs: Sequence[str], after: str | None = None) -> list[str]:
    """Return sbatch's options for a job that waits for others.

    Args:
        needs: jobs that must have succeeded; when one fails, SLURM cancels the waiting job.
        after: a job that must have ended, however it did.
    """
    # Also the follow-up jobs of a chain: what ends before them may have been cancelled for want of a need.
    terms = [f"afterok:{':'.join(needs)}"] if needs else []
    terms += [f"afterany:{after}"] if after else []
    invalid = ["--kill-on-invalid-dep=yes"] if needs else []
    return [f"--dependency={','.join(terms)}", *invalid] if terms else []


def submit_script(command: Sequence[str], folder: Path) -> str:
    """Run an `sbatch --parsable` command line from a folder; return the job's number.

    Raises:
        UserError: SLURM refuses what was asked for.
        FailedError: SLURM does not answer, or not with a number.
    """
    answer = ask_slurm(command, cwd=folder)
    # JOBID, or JOBID;CLUSTER.
    number = answer.strip().split(";")[0]
    if not number.isdigit():
        raise FailedError(f"{shlex.join(command)}: expected a job's number, got {answer.strip()!r}")
    return number


def write_script(folder: Path, text: str, name: str = SCRIPT) -> Path:
    """Write a script into a folder that only its user may read; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    script = folder / name
    with atomic_path(script) as temporary:
        temporary.write_text(text, encoding="utf-8")
        temporary.chmod(0o700)
    return script


def record(
    site_file: str | None, job: Job, number: str, command: Sequence[str], after: str | None
) -> Submitted:
    """Write down what was submitted: the newest in job.json, all of them in jobs.jsonl."""
    submitted = Submitted(
        job_id=number,
        name=job.name,
        recipe=job.recipe,
        overrides=list(job.overrides),
        nodes=job.nodes,
        ranks_per_node=job.ranks_per_node,
        site=site_file,
        submitted=time.time(),
        command=list(command),
        after=after,
    )
    append(job.output, asdict(submitted), SUBMITTED)
    # Of a chain the first: it runs first.
    if after is None:
        write_json(job.slurm_folder / JOB, asdict(submitted))
    return submitted


def my_jobs() -> dict[str, QueuedJob]:
    """Return the user's jobs that wait or run, by number; each element of an array for itself, as `12_3`.

    Raises:
        UserError: there is no SLURM here.
        FailedError: SLURM does not answer; nobody knows then.
    """
    try:
        return {job.id: job for job in find_my_jobs(submitting_environment(os.environ))}
    except NoSlurmError as error:
        raise UserError(str(error)) from None
    except SlurmError as error:
        raise FailedError(str(error)) from None


def living_jobs(run: Path, jobs: Mapping[str, QueuedJob] | None = None) -> dict[str, QueuedJob]:
    """Return the jobs of a run that wait or run, by number.

    Args:
        run: its folder.
        jobs: the user's, where they are known already.

    Raises:
        UserError: there is no SLURM here.
        FailedError: SLURM does not answer; nobody knows then.
    """
    ours = {str(entry.get("job_id")) for entry in read_lines(run / SLURM_FOLDER / SUBMITTED)}
    if not ours:
        return {}
    return {number: job for number, job in (my_jobs() if jobs is None else jobs).items() if number in ours}


def ask_slurm(command: Sequence[str], cwd: Path | None = None) -> str:
    """Run one of SLURM's programs and return what it printed.

    Raises:
        UserError: there is no such program here, or it refuses what it was asked for.
        FailedError: it did not answer in time, or cannot reach the controller.
    """
    try:
        done = subprocess.run(
            list(command),
            cwd=cwd,
            env=submitting_environment(os.environ),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ANSWER_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        raise UserError(
            f"{command[0]}: no such program; run this where SLURM is, or see the script with launch render"
        ) from None
    except subprocess.TimeoutExpired:
        raise FailedError(f"{shlex.join(command)}: no answer for {ANSWER_SECONDS:.0f} s") from None
    if done.returncode == 0:
        return done.stdout
    lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
    message = f"{command[0]}: {'; '.join(line.removeprefix(f'{command[0]}: ') for line in lines)}"
    unreachable = ("Unable to contact", "Connection refused", "timed out", "configuration source")
    raise (FailedError if any(word in message for word in unreachable) else UserError)(message)


def submitting_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without what the job in which we may be running left there.

    srun in the new job would take the old one's limits (SLURM_MEM_PER_NODE and the like) for its own.
    """
    return {
        key: value
        for key, value in environment.items()
        if not key.startswith("SLURM_") or key in CLUSTER_VARIABLES
    }


def to_json(job: Job, site_file: str | None, script: str, submitted: Sequence[Submitted]) -> dict[str, Any]:
    """Return what `launch slurm --json` prints."""
    return {
        "name": job.name,
        "run": str(job.output),
        "nodes": job.nodes,
        "ranks": job.ranks,
        "time": job.time,
        "site": site_file,
        "script": script,
        "jobs": [asdict(each) for each in submitted],
    }
