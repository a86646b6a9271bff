"""One run as a SLURM job: what to train, where, on how many nodes."""

from dataclasses import dataclass
from pathlib import Path

from launcher.site import Site, check_ranks_and_gpus, check_time, seconds_of
from sparse_pretrain.errors import UserError

SLURM_FOLDER = "slurm"


@dataclass(frozen=True)
class Job:
    """What of a job is not the site's.

    Attributes:
        name: as squeue shows it.
        recipe: a file or the name of a shipped recipe, as the user wrote it.
        overrides: `key=value` settings on top.
        output: the run folder, absolute.
        folder: where the job runs, absolute: relative paths in recipe and overrides start here.
        nodes: number of nodes.
        min_nodes: with how few of them it may start, or start again; None: never with fewer.
        ranks_per_node: ranks on each of them.
        time: time limit as SLURM writes it.
        steps: the recipe's; a job of a chain ends at once when they are done.
        bin: folder of the programs `python3` and `sparse-pretrain`; None: the nodes' PATH has them.
        allow_change: continue although the recipe now trains something else.
        done: a file to make when all steps are done; None: none.
    """

    name: str
    recipe: str
    overrides: tuple[str, ...]
    output: Path
    folder: Path
    nodes: int
    ranks_per_node: int
    time: str
    steps: int
    bin: str | None = None
    allow_change: bool = False
    min_nodes: int | None = None
    done: Path | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise UserError("--name = '': a job needs a name")
        for option, number in (("--nodes", self.nodes), ("--ranks-per-node", self.ranks_per_node)):
            if number < 1:
                raise UserError(f"{option} = {number}: must be at least 1")
        if self.min_nodes is not None and not 1 <= self.min_nodes <= self.nodes:
            raise UserError(f"--min-nodes = {self.min_nodes}: must be between 1 and --nodes = {self.nodes}")
        try:
            check_time(self.time)
        except ValueError as error:
            raise UserError(f"--time = {self.time!r}: {error}") from None

    @property
    def ranks(self) -> int:
        """Ranks of the whole job."""
        return self.nodes * self.ranks_per_node

    @property
    def slurm_folder(self) -> Path:
        """Where the script, its record and SLURM's output lie."""
        return self.output / SLURM_FOLDER


def check_job(site: Site, job: Job) -> None:
    """Make sure that a job's numbers fit its site.

    Raises:
        UserError: more ranks than GPUs on a node, or told to leave before it has begun.
    """
    # 0 is SLURM's word for no limit.
    if 0 < seconds_of(job.time) <= site.signal_seconds:
        raise UserError(
            f"--time = {job.time!r}: must be longer than signal_seconds = {site.signal_seconds}, or ranks are told to "
            "leave as soon as they start"
        )
    try:
        check_ranks_and_gpus(job.ranks_per_node, site.gpus_per_node)
    except ValueError as error:
        raise UserError(f"--ranks-per-node: {error}") from None


def programs(site: Site, submitting: Path | None) -> str | None:
    """Return the folder with the site's `sparse-pretrain` and `python3`.

    Args:
        site: its `venv` or `python` comes first; a container's own programs are on the container's PATH.
        submitting: the interpreter that submits, the default on nodes without a container.
    """
    if site.venv is not None:
        return str(Path(site.venv).absolute() / "bin")
    if site.python is not None:
        return str(Path(site.python).absolute().parent)
    if site.container.kind != "none" or submitting is None:
        return None
    # Not resolved: a virtual environment's interpreter is a link to one without our packages.
    return str(submitting.absolute().parent)
