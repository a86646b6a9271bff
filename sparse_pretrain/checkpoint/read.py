"""A checkpoint as whole tensors, without DeepSpeed, a GPU, or the number of ranks that wrote it."""

from pathlib import Path

from sparse_pretrain.checkpoint.contents import CheckpointModel
from sparse_pretrain.checkpoint.shards import MASTER, FragmentReader
from sparse_pretrain.checkpoint.store import MODEL, STATE, WEIGHTS, problem_with
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import read_json
from sparse_pretrain.pruning.masks import MASK_FILE, MaskSet


def read_checkpoint(folder: Path) -> CheckpointModel:
    """Read the fp32 masters (dense: masks are not applied) and everything a release tells about them.

    Raises:
        UserError: the folder is not a whole checkpoint.
    """
    problem = problem_with(folder)
    if problem is not None:
        raise UserError(f"{folder}: {problem}")
    state = read_json(folder / STATE)
    reader = FragmentReader(sorted((folder / WEIGHTS).iterdir()))
    masks = folder / MASK_FILE
    return CheckpointModel(
        weights={name: reader.whole(MASTER, name) for name in reader.shapes},
        masks=MaskSet.load(masks) if masks.is_file() else None,
        model_folder=folder / MODEL,
        step=int(state["step"]),
        recipe=state["recipe"],
        data_fingerprint=state["loader"]["fingerprint"],
        metrics=state["metrics"],
        versions=state["versions"],
    )
