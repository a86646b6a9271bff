"""A pipeline on this machine: one stage after the other, without SLURM."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from launcher.local import launch_local
from launcher.pipeline.look import plan_pipeline
from launcher.pipeline.plan import Decision
from launcher.pipeline.record import new_record, only_one_launch, read_record, write_record
from launcher.pipeline.render_command import OURS
from launcher.pipeline.stages import DONE, Element, StageJob
from launcher.pipeline.submit import describe
from sparse_pretrain.errors import UserError

NOT_FOUND = 127


def run_pipeline_here(
    file: str,
    stages: Sequence[StageJob],
    output: Path,
    ranks: int,
    bind: bool,
    redo: Sequence[str],
    say: Callable[[str], None],
) -> int:
    """Do what is not done of a pipeline, here and now.

    Args:
        file: the pipeline as the user named it.
        stages: each after all that it needs.
        output: the pipeline's folder.
        ranks: of each training, whatever its stage says of nodes.
        bind: give each rank cores of its own.
        redo: stages to do anew although they are done.
        say: takes lines for the user.

    Returns:
        0, or the exit code of what failed or was stopped: nothing after it was begun.

    Raises:
        UserError: something is wrong with what is known of the pipeline.
        FailedError: SLURM has jobs of it, and does not answer.
    """
    with only_one_launch(output):
        decisions = plan_pipeline(stages, output, redo)
        for decision in decisions:
            if decision.under_way:
                raise UserError(
                    f"stages.{decision.stage.name}: a SLURM job is at it: {', '.join(decision.under_way.values())}; "
                    f"launch cancel {output} first"
                )
        (output / DONE).mkdir(parents=True, exist_ok=True)
        write_record(output, new_record(file, stages, read_record(output)))
        for decision in decisions:
            for element in decision.finished:
                # It is not there yet when a training was done without the pipeline.
                element.done.touch()
            if not decision.submit:
                say(describe(decision))
            for element in decision.submit:
                code = do(decision, element, ranks, bind, say)
                if code:
                    say(f"{element.name}: ended with exit code {code}; the same command goes on from here")
                    return code
    return 0


def do(decision: Decision, element: Element, ranks: int, bind: bool, say: Callable[[str], None]) -> int:
    """Do one element; note that it is done, or return the exit code that says otherwise."""
    stage = decision.stage
    element.done.unlink(missing_ok=True)
    if stage.train is not None:
        say(f"{element.name}: train {stage.train.recipe} on {ranks} rank{'s' * (ranks != 1)}")
        words = ["train", stage.train.recipe, *stage.train.overrides]
        code = launch_local(words, ranks, stage.train.output, bind=bind)
    else:
        say(f"{element.name}: {' '.join(element.words)}")
        code = run_command(element.words, stage.folder)
    if code == 0:
        element.done.touch()
    return code


def run_command(words: Sequence[str], folder: Path) -> int:
    """Run a command line with this Python's programs first on PATH; return its exit code as a shell shows it."""
    # Not resolved: a virtual environment's interpreter is a link to one without our packages.
    programs = Path(sys.executable).parent
    first = str(programs / words[0]) if words[0] in OURS else words[0]
    environment = {**os.environ, "PATH": os.pathsep.join([str(programs), os.environ.get("PATH", os.defpath)])}
    try:
        code = subprocess.run([first, *words[1:]], cwd=folder, env=environment, check=False).returncode
    except FileNotFoundError:
        print(f"{words[0]}: no such program", file=sys.stderr)
        return NOT_FOUND
    return code if code >= 0 else 128 - code
