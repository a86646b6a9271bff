"""What one update of the masks did, for whoever listens."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerUpdate:
    """One weight at one mask update.

    Attributes:
        sparsity: share of pruned weights, in [0, 1].
        threshold: the score at which the budget of the weight's scope (the whole model's, with global
            allocation) is reached: what scored less was pruned. None when nothing was to be pruned, or
            only what is pruned for good.
        pruned: weights newly pruned.
        regrown: weights that came back.
        dead_rows: share of rows (output neurons) without any kept weight, in [0, 1].
    """

    sparsity: float
    threshold: float | None
    pruned: int
    regrown: int
    dead_rows: float


@dataclass(frozen=True)
class MaskUpdate:
    """One update of all masks.

    Attributes:
        step: optimizer steps done.
        target_sparsity: what the schedule asked for.
        sparsity: what the masks have, over all prunable weights.
        layers: by weight name.
        froze: this was the last update.
    """

    step: int
    target_sparsity: float
    sparsity: float
    layers: dict[str, LayerUpdate]
    froze: bool

    @property
    def pruned(self) -> int:
        """Weights newly pruned."""
        return sum(layer.pruned for layer in self.layers.values())

    @property
    def regrown(self) -> int:
        """Weights that came back."""
        return sum(layer.regrown for layer in self.layers.values())
