"""Site and job to the text of an sbatch script: pure functions on the templates in `slurm/`.

Values meet two languages on their way: sbatch's own reading of `#SBATCH` lines, and bash. Each has one filter, and
the template cannot print a value that passed none.
"""

import json
import re
import shlex
import unicodedata
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from launcher.job import Job, check_job
from launcher.site import Site
from sparse_pretrain.errors import UserError
from sparse_pretrain.shipped import shipped_folder

TRAIN = "train.sbatch.j2"
# What sbatch reads as it stands.
PLAIN = re.compile(r"[A-Za-z0-9_./,:=@%+\[\]-]+")
# Unicode's control characters and separators of lines and paragraphs.
LINE_BREAKING = ("Cc", "Zl", "Zp")


class Written(str):
    """Text in the language of the place it stands in; only filters make it."""

    __slots__ = ()


def render(site: Site, job: Job) -> str:
    """Return the sbatch script of a job, ending in a newline.

    Raises:
        UserError: a value that a script cannot hold (naming it), or numbers that do not fit the site.
    """
    check_job(site, job)
    return fill(
        TRAIN,
        site,
        job=job,
        name=job.name,
        nodes=job.nodes,
        # One alone would ask for what there is anyway.
        min_nodes=job.min_nodes if job.min_nodes != job.nodes else None,
        least_nodes=str(job.min_nodes) if job.min_nodes else '"$SLURM_JOB_NUM_NODES"',
        ranks_per_node=job.ranks_per_node,
        time=job.time,
        bin=job.bin,
        has_bin=job.bin is not None,
        overrides=[*local_disk_override(site), *job.overrides],
        output=output_pattern(job.slurm_folder, "job-%j.out"),
        folder=job.folder,
        slurm_folder=job.slurm_folder,
    )


def render_by_hand(site: Site) -> str:
    """Return the script that takes recipe and overrides from sbatch's command line (slurm/train.sbatch)."""
    return fill(
        TRAIN,
        site,
        by_hand=True,
        job=None,
        name="sparse-pretrain",
        nodes=site.nodes,
        min_nodes=None,
        least_nodes='"$SLURM_JOB_NUM_NODES"',
        ranks_per_node=site.ranks_per_node,
        time=site.time,
        bin=None,
        has_bin=True,
        overrides=[],
        output="%x-%j.out",
        folder=None,
        slurm_folder=None,
    )


def fill(template: str, site: Site, **values: Any) -> str:
    """Fill a template of `slurm/` in."""
    environment = Environment(
        loader=FileSystemLoader(shipped_folder("slurm")),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701 - no HTML; `only_written` refuses what no filter has quoted
        finalize=only_written,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"shell": shell, "directive": directive, "option": option, "code": code}
    gpus = f"{site.gpu_type}:{site.gpus_per_node}" if site.gpu_type else site.gpus_per_node
    defaults = {"by_hand": False, "command": False, "array": None}
    return environment.get_template(template).render(
        site=site,
        gpus=gpus,
        options=allocation_options(site),
        container=site.container,
        policy=site.restart,
        **{**defaults, **values},
    )


def allocation_options(site: Site) -> list[tuple[str, str | None]]:
    """Return sbatch's options and values by which a site allots nodes; None where it says nothing."""
    return [
        ("partition", site.partition),
        ("account", site.account),
        ("qos", site.qos),
        ("constraint", site.constraint),
        ("reservation", site.reservation),
        ("exclude", ",".join(site.exclude) or None),
        ("mem", site.memory),
    ]


def local_disk_override(site: Site) -> list[str]:
    """Return the override that makes a run use the nodes' own disks; a user's own comes after it and wins."""
    if site.local_disk is None:
        return []
    # The value is YAML: quoted where a path could be read as something else.
    plain = re.fullmatch(r"/[A-Za-z0-9_./-]*", site.local_disk)
    return [f"checkpoint.local={site.local_disk if plain else json.dumps(site.local_disk)}"]


def output_pattern(folder: Path, name: str) -> str:
    """Return the path of a job's output file as sbatch expands it: `name` may hold %j, the job's number.

    Raises:
        UserError: a backslash in the path switches the expansion off, and there is no way to write one.
    """
    if "\\" in str(folder):
        raise UserError(
            f"output = {str(folder.parent)!r}: SLURM has no way to write a backslash in an output path"
        )
    return str(folder).replace("%", "%%") + "/" + name


def shell(value: object, key: str = "value") -> Written:
    """Quote a value as one word of bash, whatever is in it; `key` is what the user calls it.

    Raises:
        UserError: a NUL character, or a name that is not UTF-8.
    """
    text = str(value)
    if not is_utf8(text):
        raise UserError(f"{key} = {text!r}: a script cannot hold it: must be UTF-8 without NUL characters")
    return Written(shlex.quote(text))


def directive(value: object, key: str = "value") -> Written:
    """Write a value of a #SBATCH line: as it stands where sbatch reads it so, else in double quotes.

    Raises:
        UserError: it is empty, or has control characters or line ends, which no quoting brings through.
    """
    text = str(value)
    if not text or not is_utf8(text) or any(unicodedata.category(letter) in LINE_BREAKING for letter in text):
        raise UserError(
            f"{key} = {text!r}: sbatch cannot take it: must not be empty nor hold line ends or control characters"
        )
    if PLAIN.fullmatch(text):
        return Written(text)
    # sbatch takes a backslash as an escape within quotes as well.
    return Written('"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"')


def is_utf8(text: str) -> bool:
    """Say whether a text file can hold `text`: no NUL, no half of a surrogate pair (a name that is not UTF-8)."""
    return "\0" not in text and not any(unicodedata.category(letter) == "Cs" for letter in text)


def option(text: str) -> Written:
    """Write one `--name` or `--name=value` of a #SBATCH line."""
    name, equals, value = text.partition("=")
    return Written(f"{name}={directive(value, f'extra: {name}')}" if equals else name)


def code(text: object) -> Written:
    """Pass shell lines of the site's own, and what the template itself wrote, through.

    Raises:
        UserError: a NUL character, or text that is not UTF-8.
    """
    lines = str(text)
    if not is_utf8(lines):
        raise UserError(
            f"preamble = {lines!r}: a script cannot hold it: must be UTF-8 without NUL characters"
        )
    return Written(lines)


def only_written(value: object) -> str:
    """Refuse to print what passed no filter: a template that forgets one fails its first test, not a user."""
    if not isinstance(value, Written):
        raise TypeError(f"a template prints {value!r}, which passed none of the filters")
    return value
