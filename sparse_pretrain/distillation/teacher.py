"""A frozen teacher, whole on every rank (`training.engine.ShardedTeacher` is the sharded one)."""

import torch

from sparse_pretrain.data.batch import Batch
from sparse_pretrain.models.pretraining import Predictions, PretrainingModel, arguments


class ReplicatedTeacher:
    """A frozen model on one device, in the run's precision."""

    def __init__(self, model: PretrainingModel, device: torch.device, dtype: torch.dtype) -> None:
        self._model = model.to(device=device, dtype=dtype).requires_grad_(False).eval()

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Predictions:
        """Run the teacher without gradient."""
        return self._model(*arguments(batch))  # type: ignore[no-any-return]
