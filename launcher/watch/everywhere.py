"""All runs of a user: those below a folder, and those of the jobs that wait or run."""

from collections.abc import Mapping
from pathlib import Path

from launcher.query import SlurmError, find_job, find_my_jobs
from launcher.watch.folders import JOB_OUTPUT, find_runs, is_run


def find_all(below: Path, environment: Mapping[str, str] | None = None) -> list[Path]:
    """Return run folders below a folder, and those of this user's jobs, which are known by their output's path.

    Without SLURM only the former.
    """
    try:
        jobs = [find_job(job.id, environment) for job in find_my_jobs(environment)]
    except SlurmError:
        jobs = []
    outputs = [Path(job.output) for job in jobs if job.output is not None]
    of_jobs = [
        path.parent.parent
        for path in outputs
        if JOB_OUTPUT.fullmatch(path.name) and path.parent.name == "slurm" and is_run(path.parent.parent)
    ]
    runs = {path.resolve(): path for path in [*of_jobs, *find_runs(below)]}
    return list(runs.values())
