"""A pipeline's stages as jobs: what each runs, on what, and by which file it is known to be done."""

import itertools
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.job import Job, check_job, programs
from launcher.pipeline.spec import PLACEHOLDER, Pipeline, Stage, in_order
from launcher.site import Site, load_site
from launcher.submit import Request, prepare_job
from sparse_pretrain.config.load import to_yaml
from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import sha256_file, sha256_json

DONE = "done"
# Files named in a command line that describe what it does: when one changes, so does the command.
DESCRIBING = (".yaml", ".yml", ".json", ".py", ".sh")


@dataclass(frozen=True)
class Element:
    """One thing that a stage does: its training, its command, or one command of its array.

    Attributes:
        name: for people, such as `finetune task=sst2`.
        number: in its array, from 0.
        words: of the command line; empty for a training.
        done: the file that says that it is done. Its name changes when what is done changes.
    """

    name: str
    number: int
    words: tuple[str, ...]
    done: Path


@dataclass(frozen=True)
class StageJob:
    """One stage, ready to be written as a script.

    Attributes:
        name: of the stage.
        needs: names of stages.
        site: on which it runs; for a command, asking for what the stage says.
        site_file: where its settings come from.
        output: the pipeline's folder.
        folder: where the jobs run: relative paths start here.
        time: time limit.
        bin: folder of the programs.
        elements: what it does.
        at_once: so many of the array's commands at the same time; None: all.
        train: the training's job, None for a command.
        recipe: of the training.
        chain: follow-up jobs of the training.
    """

    name: str
    needs: tuple[str, ...]
    site: Site
    site_file: str | None
    output: Path
    folder: Path
    time: str
    bin: str | None
    elements: tuple[Element, ...]
    at_once: int | None = None
    train: Job | None = None
    recipe: TrainRecipe | None = None
    chain: int = 0


def stage_jobs(
    pipeline: Pipeline,
    site: str | None,
    folder: Path,
    find_site: Callable[[str | None], tuple[Site, str | None]] = load_site,
) -> list[StageJob]:
    """Return a pipeline's stages, each after all that it needs.

    Args:
        pipeline: what was asked for.
        site: as `--site`; None: the pipeline's own.
        folder: where relative paths start.
        find_site: returns a site's settings and its file by its name.

    Raises:
        UserError: a site or recipe is wrong, or two stages write to one folder; naming the stage.
    """
    output = (folder / pipeline.output).absolute()
    jobs = []
    for name in in_order(pipeline.stages):
        stage = pipeline.stages[name]
        try:
            settings, site_file = find_site(stage.site or site or pipeline.site)
            make = train_stage if stage.train is not None else command_stage
            jobs.append(make(name, stage, settings, site_file, output, folder.absolute()))
        except UserError as error:
            raise UserError("\n".join(f"stages.{name}: {line}" for line in str(error).split("\n"))) from None
    refuse_shared_folders(jobs)
    return jobs


def train_stage(
    name: str, stage: Stage, site: Site, site_file: str | None, output: Path, folder: Path
) -> StageJob:
    """Return a stage that trains."""
    request = Request(
        recipe=stage.train or "",
        overrides=stage.overrides,
        nodes=stage.nodes,
        ranks_per_node=stage.ranks_per_node,
        time=stage.time,
        name=f"{output.name}-{name}",
        min_nodes=stage.min_nodes,
    )
    job, recipe = prepare_job(request, site, folder)
    check_job(site, job)
    done = output / DONE / f"{name}-{identity(folder, to_yaml(recipe))}"
    element = Element(name, 0, (), done)
    return StageJob(
        name=name,
        needs=stage.needs,
        site=site,
        site_file=site_file,
        output=output,
        folder=folder,
        time=job.time,
        bin=job.bin,
        elements=(element,),
        train=replace(job, done=done),
        recipe=recipe,
        chain=stage.chain,
    )


def command_stage(
    name: str, stage: Stage, site: Site, site_file: str | None, output: Path, folder: Path
) -> StageJob:
    """Return a stage that runs a command, or an array of them."""
    elements = []
    combinations = itertools.product(
        *([(key, value) for value in values] for key, values in stage.array.items())
    )
    for number, chosen in enumerate(combinations):
        values = {key: str(value) for key, value in chosen}
        # Split first: a value with spaces stays one word.
        words = tuple(fill_in(word, values) for word in shlex.split(stage.command or ""))
        shown = " ".join([name, *(f"{key}={value}" for key, value in values.items())])
        key = identity(folder, *words, *(digest_of(folder / word) for word in words))
        elements.append(Element(shown, number, words, output / DONE / f"{name}-{key}"))
    asked = {"cpus_per_rank": stage.cpus, "memory": stage.memory}
    changes: dict[str, object] = {key: value for key, value in asked.items() if value is not None}
    # A command saves nothing when it is told to leave: it has its whole time.
    changes |= {"gpus_per_node": stage.gpus or 0, "signal_seconds": 0}
    if not stage.gpus:
        changes["gpu_type"] = None
    return StageJob(
        name=name,
        needs=stage.needs,
        site=site.model_copy(update=changes),
        site_file=site_file,
        output=output,
        folder=folder,
        time=stage.time or site.time,
        bin=programs(site, Path(sys.executable)),
        elements=tuple(elements),
        at_once=stage.at_once,
    )


def fill_in(word: str, values: dict[str, str]) -> str:
    """Replace each {name} of an array in one word."""
    return PLACEHOLDER.sub(lambda found: values.get(found.group(1), found.group(0)), word)


def identity(folder: Path, *parts: str) -> str:
    """Return a short name for what is done in a folder: another one when anything of it changes."""
    return sha256_json([str(folder), *parts])[:12]


def digest_of(path: Path) -> str:
    """Return the digest of a file that describes what a command does; empty for any other word."""
    return sha256_file(path) if path.suffix in DESCRIBING and path.is_file() else ""


def refuse_shared_folders(jobs: Sequence[StageJob]) -> None:
    """Make sure that no two trainings write to the same run folder.

    Raises:
        UserError: naming both stages.
    """
    seen: dict[Path, str] = {}
    for job in jobs:
        if job.train is None:
            continue
        other = seen.setdefault(job.train.output, job.name)
        if other != job.name:
            raise UserError(
                f"stages.{job.name}: output = {json.dumps(str(job.train.output))}: stage {other} writes there too; "
                "give each its own"
            )
