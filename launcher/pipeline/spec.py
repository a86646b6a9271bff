"""`pipeline.yaml`: stages and what they need, read as strictly as a recipe."""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from pydantic import Field, ValidationInfo, field_validator, model_validator

from launcher.site import Memory, Name, TimeLimit
from sparse_pretrain.config.base import Section, UserPath
from sparse_pretrain.config.load import load_recipe

STAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
ONLY_OF_TRAIN = ("overrides", "nodes", "ranks_per_node", "min_nodes", "chain")
ONLY_OF_COMMAND = ("array", "at_once", "cpus", "gpus", "memory")


class Stage(Section):
    """One stage: a training on many ranks (`train`), or a command on one node (`command`), or an array of them."""

    needs: tuple[Name, ...] = Field((), description="stages that must have succeeded before")
    train: Name | None = Field(None, description="a recipe: a YAML file, or the name of a shipped one")
    overrides: tuple[str, ...] = Field((), description="key=value settings on top of the recipe")
    command: Name | None = Field(None, description="a command line, such as `sparse-pretrain release …`")
    array: dict[str, tuple[str | int | float, ...]] = Field(
        {}, description="the command once for each value of {name}; for several names, each combination"
    )
    at_once: int | None = Field(None, ge=1, description="commands of the array that run at the same time")
    site: Name | None = Field(None, description="as --site; default: the pipeline's")
    time: TimeLimit | None = Field(None, description="limit of one job; default: the site's")
    nodes: int | None = Field(None, ge=1)
    ranks_per_node: int | None = Field(None, ge=1)
    min_nodes: int | None = Field(None, ge=1, description="with how few nodes the job may start again")
    chain: int = Field(0, ge=0, description="follow-up jobs, where jobs may not requeue")
    cpus: int | None = Field(None, ge=1, description="of the command; default: the site's of a rank")
    gpus: int | None = Field(None, ge=0, description="of the command; default: none")
    memory: Memory | None = Field(None, description="of the command; default: the site's of a node")

    @field_validator("command")
    @classmethod
    def _is_a_command_line(cls, command: str | None) -> str | None:
        if command is not None and not shlex.split(command):
            raise ValueError("must name a program")
        return command

    @field_validator("array")
    @classmethod
    def _has_values(
        cls, array: dict[str, tuple[str | int | float, ...]]
    ) -> dict[str, tuple[str | int | float, ...]]:
        for name, values in array.items():
            if not values:
                raise ValueError(f"{name} has no value")
            if len(set(map(str, values))) < len(values):
                raise ValueError(f"{name} has a value twice")
        return array

    @model_validator(mode="after")
    def _is_of_one_kind(self) -> "Stage":
        if (self.train is None) == (self.command is None):
            raise ValueError("needs either train (a recipe) or command (a command line)")
        foreign = ONLY_OF_COMMAND if self.train is not None else ONLY_OF_TRAIN
        for key in foreign:
            if key in self.model_fields_set:
                kind = "command" if self.train is not None else "train"
                raise ValueError(f"{key} belongs to stages with {kind}")
        used = set(PLACEHOLDER.findall(self.command or ""))
        unknown, unused = used - self.array.keys(), self.array.keys() - used
        # A command without an array may hold braces of its own.
        if self.array and unknown:
            raise ValueError(f"command has {{{min(unknown)}}}, and array has no such name")
        if unused:
            raise ValueError(f"array has {min(unused)}, and command has no {{{min(unused)}}}")
        return self


class Pipeline(Section):
    """Stages by name, and where what is known of them lies."""

    output: UserPath = Field(
        description="folder of the pipeline's own files; those of the stages lie where they say"
    )
    site: Name | None = Field(None, description="as --site, which wins over it")
    stages: dict[str, Stage]

    @field_validator("stages")
    @classmethod
    def _names_are_plain(cls, stages: dict[str, Stage]) -> dict[str, Stage]:
        if not stages:
            raise ValueError("a pipeline has at least one stage")
        for name in stages:
            if not STAGE_NAME.fullmatch(name):
                raise ValueError(f"{name!r}: a stage's name has letters, digits, - and _ only")
        return stages

    @field_validator("stages")
    @classmethod
    def _needs_exist(cls, stages: dict[str, Stage], info: ValidationInfo) -> dict[str, Stage]:
        for name, stage in stages.items():
            for need in stage.needs:
                if need not in stages:
                    raise ValueError(f"{name} needs {need!r}, and there is no such stage")
        in_order(stages)
        return stages


def in_order(stages: Mapping[str, Stage]) -> list[str]:
    """Return the stages' names, each after all that it needs, otherwise as written.

    Raises:
        ValueError: stages need each other in a circle.
    """
    order: list[str] = []
    while len(order) < len(stages):
        ready = [name for name in stages if name not in order and set(stages[name].needs) <= set(order)]
        if not ready:
            circle = ", ".join(name for name in stages if name not in order)
            raise ValueError(f"these stages need each other in a circle: {circle}")
        order.append(ready[0])
    return order


def is_pipeline(path: str) -> bool:
    """Say whether an argument is a file that describes a pipeline, and no recipe."""
    if not Path(path).is_file():
        return False
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError):
        return False
    return isinstance(values, dict) and "stages" in values


def load_pipeline(path: str, overrides: Sequence[str] = ()) -> Pipeline:
    """Read a pipeline, with `key=value` settings on top.

    Raises:
        UserError: naming file, key, value and what would be right.
    """
    return load_recipe(path, overrides, Pipeline)
