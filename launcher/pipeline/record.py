"""`OUTPUT/pipeline.json`: what was submitted for each stage, for `launch status` and for the next `launch slurm`."""

import fcntl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from launcher.pipeline.spec import is_pipeline, load_pipeline
from launcher.pipeline.stages import StageJob
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import read_json, write_json

RECORD = "pipeline.json"
LOCK = ".launch.lock"


@dataclass(frozen=True)
class ElementRecord:
    """One element of a stage.

    Attributes:
        name: for people.
        done: the file that says that it is done.
        job_id: SLURM's number of the job that does or did it, `12_3` in an array; None: never submitted.
        output: what that job prints; None: never submitted.
    """

    name: str
    done: str
    job_id: str | None = None
    output: str | None = None


@dataclass(frozen=True)
class StageRecord:
    """One stage: what it needs, its training's run folder (None for a command), its elements."""

    needs: tuple[str, ...]
    run: str | None
    elements: tuple[ElementRecord, ...]


@dataclass(frozen=True)
class PipelineRecord:
    """All of a pipeline.

    Attributes:
        file: the pipeline as the user named it.
        folder: where relative paths start.
        stages: in an order in which each comes after all that it needs.
    """

    file: str
    folder: str
    stages: Mapping[str, StageRecord] = field(default_factory=dict)

    @property
    def has_jobs(self) -> bool:
        """Whether anything of it was ever submitted to SLURM."""
        return any(element.job_id is not None for stage in self.stages.values() for element in stage.elements)


def find_pipeline(path: Path) -> Path | None:
    """Return the folder of the pipeline that an argument names, by its folder or its file; None if it names none.

    Raises:
        UserError: the file describes a pipeline, wrongly.
    """
    path = path.expanduser()
    if (path / RECORD).is_file():
        return path
    return load_pipeline(str(path)).output if is_pipeline(str(path)) else None


def read_record(output: Path) -> PipelineRecord | None:
    """Return what is written down of a pipeline; None before its first launch.

    Raises:
        UserError: the file is there and cannot be understood.
    """
    path = output / RECORD
    if not path.is_file():
        return None
    values = read_json(path)
    try:
        return PipelineRecord(
            file=str(values["file"]),
            folder=str(values["folder"]),
            stages={name: stage_record(stage) for name, stage in values["stages"].items()},
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not what `launch slurm` writes ({type(error).__name__}: {error})") from None


def stage_record(values: Mapping[str, Any]) -> StageRecord:
    """Return one stage of the file."""
    elements = tuple(ElementRecord(**element) for element in values["elements"])
    return StageRecord(tuple(values["needs"]), values["run"], elements)


def write_record(output: Path, record: PipelineRecord) -> None:
    """Write the file anew, whole or not at all."""
    write_json(output / RECORD, asdict(record))


def new_record(file: str, stages: Sequence[StageJob], before: PipelineRecord | None) -> PipelineRecord:
    """Return the record of a pipeline as it is defined now; what is known of unchanged elements stays."""
    earlier = before.stages.values() if before is not None else ()
    known = {element.done: element for stage in earlier for element in stage.elements}
    return PipelineRecord(
        str(Path(file).absolute()),
        str(stages[0].folder),
        {
            stage.name: StageRecord(
                stage.needs,
                str(stage.train.output) if stage.train is not None else None,
                tuple(
                    known.get(str(element.done), ElementRecord(element.name, str(element.done)))
                    for element in stage.elements
                ),
            )
            for stage in stages
        },
    )


@contextmanager
def only_one_launch(output: Path) -> Iterator[None]:
    """Hold a pipeline for one `launch slurm` at a time.

    Raises:
        UserError: another one holds it.
    """
    output.mkdir(parents=True, exist_ok=True)
    with (output / LOCK).open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{output}: another `launch slurm` of this pipeline is at work") from None
        yield
