"""A checkpoint as the model it holds: for releases, inspection and conversion, without DeepSpeed or a GPU."""

from pathlib import Path

from sparse_pretrain.checkpoint.contents import CheckpointModel
from sparse_pretrain.checkpoint.integrity import problem_with
from sparse_pretrain.checkpoint.layout import MODEL, STATE, WEIGHTS
from sparse_pretrain.checkpoint.shards import MASTER, FragmentReader
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import read_json
from sparse_pretrain.models.projections import is_projection
from sparse_pretrain.pruning.masks import MASK_FILE, MaskSet


def open_weights(folder: Path) -> FragmentReader:
    """Open a checkpoint's shards.

    Raises:
        UserError: one is broken.
    """
    return FragmentReader(sorted((folder / WEIGHTS).glob("rank-*.safetensors")))


def read_masks(folder: Path) -> MaskSet | None:
    """Return a checkpoint's masks; None when the run did not prune.

    Raises:
        UserError: the file is broken.
    """
    path = folder / MASK_FILE
    return MaskSet.load(path) if path.is_file() else None


def read_checkpoint(folder: Path) -> CheckpointModel:
    """Read the fp32 masters (dense: masks are not applied) and all that a release tells about them.

    Needs neither DeepSpeed nor a GPU nor the number of ranks that wrote it. Distillation's projections
    are no part of the model and are left out.

    Raises:
        UserError: the folder is not a whole checkpoint.
    """
    problem = problem_with(folder)
    if problem is not None:
        raise UserError(f"{folder}: {problem}")
    state = read_json(folder / STATE)
    reader = open_weights(folder)
    return CheckpointModel(
        weights={name: reader.whole(MASTER, name) for name in reader.shapes if not is_projection(name)},
        masks=read_masks(folder),
        model_folder=folder / MODEL,
        step=int(state["step"]),
        recipe=state["recipe"],
        data_fingerprint=state["loader"]["fingerprint"],
        metrics=state["metrics"],
        versions=state["versions"],
    )
