"""Which start of a run a process belongs to, as its environment says."""

import os
from collections.abc import Mapping


def launch_name(environment: Mapping[str, str] = os.environ) -> str:
    """Return what all ranks of one start have in common and those of another start have not."""
    job = environment.get("SLURM_JOB_ID")
    if job is not None and "RANK" not in environment:
        return f"job {job}, restart {environment.get('SLURM_RESTART_COUNT', '0')}"
    meeting = (environment.get("MASTER_ADDR", "alone"), environment.get("MASTER_PORT", str(os.getpid())))
    return f"{':'.join(meeting)}, restart {environment.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def job_step(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the SLURM step of this task as `scancel` takes it, `JOB.STEP`; None where srun has not started it."""
    if "RANK" in environment:
        # torchrun or `launch local`, perhaps within an interactive step, which must not get our signals.
        return None
    job, step = environment.get("SLURM_JOB_ID"), environment.get("SLURM_STEP_ID")
    return f"{job}.{step}" if job and step else None
