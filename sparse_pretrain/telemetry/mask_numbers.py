"""Numbers of one mask update over all weights."""

from sparse_pretrain.pruning.update import MaskUpdate
from sparse_pretrain.telemetry.metrics import finite


def common_threshold(update: MaskUpdate) -> float | None:
    """Return the threshold when it is the same for all weights (global allocation), else None.

    None too when nothing is pruned yet, or when it is no number.
    """
    thresholds = {layer.threshold for layer in update.layers.values()}
    return finite(thresholds.pop()) if len(thresholds) == 1 else None


def mean_dead_rows(update: MaskUpdate) -> float | None:
    """Return the share of rows without a kept weight, in [0, 1], as the mean over weights; None of none."""
    shares = [layer.dead_rows for layer in update.layers.values()]
    return sum(shares) / len(shares) if shares else None
