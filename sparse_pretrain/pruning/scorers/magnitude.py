"""The absolute value (Han et al. 2015; Zhu & Gupta 2017; Prune Once for All)."""

from torch import Tensor

from sparse_pretrain.pruning.scorer import Part
from sparse_pretrain.pruning.scorers.base import BaseScorer


class Magnitude(BaseScorer):
    """|w| of the fp32 master, bit for bit; no memory."""

    def score(self, part: Part) -> Tensor:
        """Return |w|."""
        return part.master.abs()
