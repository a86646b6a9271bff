"""What a cluster wants to be told: one strict YAML file a site, read by the same loader as recipes."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator

from sparse_pretrain.config.base import Section, expand_home
from sparse_pretrain.config.load import load_recipe
from sparse_pretrain.errors import UserError
from sparse_pretrain.shipped import shipped_folder

SITE_VARIABLE = "SPARSE_PRETRAIN_SITE"
SETTINGS_FOLDER = Path("~/.config/sparse-pretrain")
# SLURM's forms: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]].
TIME = re.compile(r"\d+|\d+:\d\d|\d+:\d\d:\d\d|\d+-\d+(:\d\d){0,2}")
MEMORY = re.compile(r"\d+[KMGT]?", re.IGNORECASE)
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
EXTRA = re.compile(r"--[a-z][a-z0-9-]*(=.+)?")
# SLURM gives these to every rank, and a value for all of them would make each the same one; the script sets
# the others.
OURS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def check_time(value: object) -> object:
    """Refuse what is no time limit. YAML reads 24:00:00 without quotes as the number 86400, 0:30 as 30.

    Raises:
        ValueError: saying how to write it.
    """
    if isinstance(value, int):
        raise ValueError("write a time limit in quotes, such as '24:00:00' or '2-00:00:00' (days-hours)")
    if isinstance(value, str) and not TIME.fullmatch(value):
        raise ValueError(
            "must be a time limit such as '24:00:00', '2-00:00:00' (days-hours) or '90' (minutes)"
        )
    return value


def seconds_of(limit: str) -> int:
    """Return a time limit in seconds; SLURM reads a lone number as minutes, and hours first after days."""
    days, dash, rest = limit.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
        return ((int(days) * 24 + hours) * 60 + minutes) * 60 + seconds
    hours, minutes, seconds = (0, *parts, 0) if len(parts) == 1 else (0, *parts)[-3:]
    return (hours * 60 + minutes) * 60 + seconds


def check_memory(value: object) -> object:
    """Accept 64000 (megabytes), '64G', '0' (all of a node's memory).

    Raises:
        ValueError: the value is none of them.
    """
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(text, str) and not MEMORY.fullmatch(text):
        raise ValueError("must be a node's memory such as 64G or 64000 (megabytes), 0 for all there is")
    return text


def check_variable_value(value: object) -> object:
    """Turn a number into text, as the environment holds it.

    Raises:
        ValueError: yes, on, true and the like: nobody can tell which text was meant.
    """
    if isinstance(value, bool):
        raise ValueError("write it in quotes: YAML reads yes, no, on, off, true and false as truth values")
    return str(value) if isinstance(value, int | float) else value


Name = Annotated[str, Field(min_length=1)]
TimeLimit = Annotated[str, BeforeValidator(check_time)]
Memory = Annotated[str, BeforeValidator(check_memory)]
HomePath = Annotated[str, Field(min_length=1), AfterValidator(expand_home)]
VariableValue = Annotated[str, BeforeValidator(check_variable_value)]


class Container(Section):
    """In what the ranks run; its image has `sparse-pretrain` on its PATH, or `venv` names one inside it."""

    kind: Literal["none", "pyxis", "apptainer"] = "none"
    image: HomePath | None = Field(None, description="file, or an address such as docker://…")
    mounts: tuple[Name, ...] = Field((), description="HOST:CONTAINER, also for data and run folder")

    @field_validator("image")
    @classmethod
    def _fits_the_kind(cls, image: str | None, info: ValidationInfo) -> str | None:
        kind = info.data.get("kind")
        if kind in ("pyxis", "apptainer") and image is None:
            raise ValueError(f"kind = {kind} needs an image")
        if kind == "none" and image is not None:
            raise ValueError("nothing runs it: set kind to pyxis or apptainer")
        return image


class RestartPolicy(Section):
    """When a job that crashed starts again by itself; one that stopped and saved always does."""

    max_restarts: int = Field(3, ge=0, description="after crashes, counted by job; 0: never")
    same_step_failures: int = Field(
        2, ge=1, description="give up when so many failures in a row came at the same step"
    )
    exclude_after_failures_of_a_node: int = Field(
        2, ge=0, description="leave a node out when it caused so many of a job's failures; 0: never"
    )


class Site(Section):
    """One cluster, or one way to use it. Every key has a default: SLURM's own, where it has one."""

    partition: Name | None = None
    account: Name | None = None
    qos: Name | None = None
    constraint: Name | None = None
    reservation: Name | None = None
    exclude: tuple[Name, ...] = Field((), description="nodes never to use, such as node[07-09]")
    time: TimeLimit = Field("24:00:00", description="limit of one job; a run goes on in the next")
    nodes: int = Field(1, ge=1)
    ranks_per_node: int = Field(1, ge=1, description="one a GPU; on CPU nodes one a socket")
    cpus_per_rank: int = Field(1, ge=1)
    gpus_per_node: int = Field(0, ge=0)
    gpu_type: Name | None = Field(None, description="as in --gpus-per-node=TYPE:NUMBER")
    memory: Memory | None = Field(None, description="of a node: 64G, or 0 for all")
    exclusive: bool = Field(False, description="share no node with other jobs")
    signal_seconds: int = Field(
        120, ge=0, le=65535, description="so long before the time limit ranks are told to save and leave"
    )
    requeue: bool = Field(True, description="false where jobs must not requeue; --chain goes on all the same")
    modules: tuple[Name, ...] = Field((), description="for `module load`, in this order")
    environment: dict[str, VariableValue] = Field({}, description="variables of every rank")
    preamble: tuple[str, ...] = Field((), description="shell lines before the ranks start, as they are")
    venv: HomePath | None = Field(None, description="the environment with sparse-pretrain")
    python: HomePath | None = Field(None, description="or its interpreter; default: the submitting one")
    container: Container = Container()
    extra: tuple[Name, ...] = Field((), description="further sbatch options, such as --licenses=scratch")
    restart: RestartPolicy = RestartPolicy()
    local_disk: HomePath | None = Field(
        None, description="folder on every node's own disk: checkpoints are written there first"
    )

    @field_validator("environment")
    @classmethod
    def _variables_are_the_users(cls, environment: dict[str, str]) -> dict[str, str]:
        for name in environment:
            if not VARIABLE.fullmatch(name):
                raise ValueError(f"{name!r} is no name of a variable")
            if name in OURS:
                raise ValueError(f"{name} differs between ranks or jobs; the script sets it")
        return environment

    @field_validator("extra")
    @classmethod
    def _extra_are_options(cls, options: tuple[str, ...]) -> tuple[str, ...]:
        for option in options:
            if not EXTRA.fullmatch(option):
                raise ValueError(f"{option!r} must be one sbatch option, --name or --name=value")
        return options

    @field_validator("gpus_per_node")
    @classmethod
    def _every_rank_has_a_gpu(cls, gpus: int, info: ValidationInfo) -> int:
        check_ranks_and_gpus(info.data.get("ranks_per_node", 1), gpus)
        return gpus

    @field_validator("gpu_type")
    @classmethod
    def _a_type_of_some_gpus(cls, gpu_type: str | None, info: ValidationInfo) -> str | None:
        if gpu_type is not None and not info.data.get("gpus_per_node", 1):
            raise ValueError("needs gpus_per_node")
        return gpu_type

    @field_validator("python")
    @classmethod
    def _one_environment(cls, python: str | None, info: ValidationInfo) -> str | None:
        if python is not None and info.data.get("venv") is not None:
            raise ValueError(f"venv = {info.data['venv']} names the environment already: keep one")
        return python


def check_ranks_and_gpus(ranks_per_node: int, gpus_per_node: int) -> None:
    """Make sure that no GPU has two ranks, which NCCL refuses after the job has waited in the queue.

    Raises:
        ValueError: naming both numbers.
    """
    if 0 < gpus_per_node < ranks_per_node:
        raise ValueError(
            f"ranks_per_node = {ranks_per_node} on gpus_per_node = {gpus_per_node}: NCCL takes one rank a GPU"
        )


def load_site(wanted: str | None, environment: Mapping[str, str] = os.environ) -> tuple[Site, str | None]:
    """Return a site's settings and the file they come from; SLURM's defaults and None where there is none.

    Args:
        wanted: a file, or a name (`--site`); None: SPARSE_PRETRAIN_SITE, then the user's `site.yaml`.
        environment: where SPARSE_PRETRAIN_SITE is looked for.

    Raises:
        UserError: no such file, or naming file, key, value and what would be right.
    """
    path = find_site(wanted or environment.get(SITE_VARIABLE) or None)
    return (Site(), None) if path is None else (load_recipe(path, [], Site), str(path))


def find_site(wanted: str | None) -> Path | None:
    """Return the file that a site's name means: a path first, then the user's own, then a shipped example.

    Raises:
        UserError: nothing has this name.
    """
    folder = SETTINGS_FOLDER.expanduser()
    if wanted is None:
        default = folder / "site.yaml"
        return default if default.is_file() else None
    file_name = f"{wanted.removesuffix('.yaml')}.yaml"
    shipped = shipped_folder("slurm") / "sites"
    for candidate in (Path(wanted).expanduser(), folder / file_name, shipped / file_name):
        if candidate.is_file():
            return candidate
    examples = ", ".join(sorted(path.stem for path in shipped.glob("*.yaml")))
    raise UserError(
        f"site {wanted!r}: no such file, none of this name in {SETTINGS_FOLDER}, and no example ({examples})"
    )
