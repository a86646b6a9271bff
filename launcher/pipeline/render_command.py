"""The sbatch script of a stage that runs commands: a pure function on `slurm/command.sbatch.j2`."""

from collections.abc import Sequence
from pathlib import Path

from launcher.job import SLURM_FOLDER
from launcher.pipeline.stages import Element, StageJob
from launcher.render import fill, output_pattern

COMMAND = "command.sbatch.j2"
# Programs that lie in the site's own folder.
OURS = ("sparse-pretrain", "python", "python3")


def render_command_stage(stage: StageJob, elements: Sequence[Element]) -> str:
    """Return the script of a stage's commands, ending in a newline.

    Args:
        stage: with commands, no training.
        elements: those that the script runs when it is submitted as it is; it holds all.

    Raises:
        UserError: a value that a script cannot hold.
    """
    several = len(stage.elements) > 1
    numbers = ",".join(str(element.number) for element in elements)
    limit = f"%{stage.at_once}" if stage.at_once is not None else ""
    return fill(
        COMMAND,
        stage.site,
        command=True,
        name=f"{stage.output.name}-{stage.name}",
        nodes=1,
        min_nodes=None,
        ranks_per_node=1,
        array=f"{numbers}{limit}" if several else None,
        time=stage.time,
        bin=stage.bin,
        has_bin=stage.bin is not None,
        output=output_pattern(
            stage.output / SLURM_FOLDER, f"{stage.name}-{'%A_%a' if several else '%j'}.out"
        ),
        folder=stage.folder,
        slurm_folder=stage.output / SLURM_FOLDER,
        elements=stage.elements,
        ours=OURS,
    )


def job_output(stage: StageJob, job_id: str) -> Path:
    """Return the file that a job of a stage prints to; `job_id` is `12_3` in an array."""
    if stage.train is not None:
        return stage.train.slurm_folder / f"job-{job_id}.out"
    return stage.output / SLURM_FOLDER / f"{stage.name}-{job_id}.out"
