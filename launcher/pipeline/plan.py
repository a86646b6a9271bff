"""Which elements of a pipeline are done, which are under way, and which have to be submitted: a pure decision."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from launcher.pipeline.stages import Element, StageJob
from sparse_pretrain.errors import UserError


@dataclass(frozen=True)
class Living:
    """A job that waits or runs for an element: its number, `12_3` in an array, and whether it has begun."""

    job_id: str
    runs: bool


@dataclass(frozen=True)
class Decision:
    """What happens to one stage.

    Attributes:
        stage: which.
        finished: elements that need nothing.
        under_way: jobs that do the others already, by the element's number.
        submit: elements to submit now.
        cancel: waiting jobs that are outdated, or hang on what is submitted anew; they are submitted anew themselves.
    """

    stage: StageJob
    finished: tuple[Element, ...]
    under_way: Mapping[int, str]
    submit: tuple[Element, ...]
    cancel: tuple[str, ...] = ()

    @property
    def is_finished(self) -> bool:
        """Whether nothing of the stage is left to do."""
        return len(self.finished) == len(self.stage.elements)


def decide(
    stages: Sequence[StageJob],
    done: Collection[Path],
    living: Mapping[Path, Living],
    outdated: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> list[Decision]:
    """Decide for each stage, in the order given.

    An element is finished when its file is there and all that the stage needs is finished: what hangs on something
    that is done anew is done anew as well.

    Args:
        stages: each after all that it needs.
        done: files of elements that say that they are done.
        living: jobs that wait or run, by the file of the element that they do.
        outdated: waiting jobs that would do what a stage is no longer defined to do, by the stage's name.

    Raises:
        UserError: a job runs on what is to be done anew.
    """
    decisions: dict[str, Decision] = {}
    for stage in stages:
        needs = [decisions[need] for need in stage.needs]
        ready = all(need.is_finished for need in needs)
        anew = [need.stage.name for need in needs if need.submit]
        finished, submit, cancel = [], [], [*outdated.get(stage.name, ())]
        under_way: dict[int, str] = {}
        for element in stage.elements:
            job = living.get(element.done)
            if ready and element.done in done:
                finished.append(element)
            elif job is None:
                submit.append(element)
            elif not anew:
                under_way[element.number] = job.job_id
            elif job.runs:
                raise UserError(
                    f"stages.{stage.name}: job {job.job_id} runs, and needs {anew[0]}, which is to be done anew: "
                    f"scancel {job.job_id} first"
                )
            else:
                cancel.append(job.job_id)
                submit.append(element)
        decisions[stage.name] = Decision(stage, tuple(finished), under_way, tuple(submit), tuple(cancel))
    return list(decisions.values())
