"""What a site's file means for the array jobs of data preparation."""

import shlex
import sys
from pathlib import Path

from data_prep.engine_slurm import SlurmSettings
from launcher.render import allocation_options
from launcher.site import Site
from sparse_pretrain.errors import UserError

# Of a task: its tokens, its windows of documents and one shard lie far below.
MEMORY_GB = 4


def slurm_settings(site: Site) -> SlurmSettings:
    """Return how the tasks of a preparation run on a site: one core each, no GPU.

    Raises:
        UserError: the site runs everything in a container, which preparation does not do.
    """
    if site.container.kind != "none":
        raise UserError(
            f"container.kind = {site.container.kind}: data is prepared without a "
            "container; give a site with venv or python"
        )
    # The memory of a task is ours to say, not that of a training's node.
    options = {name: value for name, value in allocation_options(site) if value is not None and name != "mem"}
    for option in site.extra:
        name, _, value = option.removeprefix("--").partition("=")
        options[name] = value
    python = site.python or (str(Path(site.venv) / "bin" / "python") if site.venv else sys.executable)
    variables = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"} | dict(site.environment)
    setup = [
        *(f"module load {shlex.quote(module)}" for module in site.modules),
        *(f"export {name}={shlex.quote(value)}" for name, value in variables.items()),
        *site.preamble,
    ]
    return SlurmSettings(
        time=site.time, memory_gb=MEMORY_GB, options=options, setup=tuple(setup), python=python
    )
