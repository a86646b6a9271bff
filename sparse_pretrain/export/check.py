"""Does an exported model answer like the torch model? On a hundred inputs, the largest difference."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sparse_pretrain.errors import FailedError
from sparse_pretrain.export.inputs import Array, Batch
from sparse_pretrain.export.runners import Run

# fp32 sums in another order: a few units in the seventh digit, times the depth of the network.
FP32_TOLERANCE = 1e-4
# Weights rounded to 11 bits: about 5e-4 of each, averaged over many.
FP16_TOLERANCE = 2e-2


class CheckError(FailedError):
    """The exported model does not answer like the torch model; nothing was put in its place."""


@dataclass(frozen=True)
class Agreement:
    """How alike two models' outputs are.

    Attributes:
        inputs: number of inputs compared.
        largest_output: the largest |output| of the reference.
        max_difference: the largest |difference|.
        mean_difference: the mean |difference|.
        same_answer: share of the answers (largest along an output's last axis) that are the same, in [0, 1].
    """

    inputs: int
    largest_output: float
    max_difference: float
    mean_difference: float
    same_answer: float

    def within(self, tolerance: float) -> bool:
        """Say whether the largest difference is at most `tolerance` times the largest output, or 1 if smaller."""
        return self.max_difference <= tolerance * max(1.0, self.largest_output)

    def to_json(self) -> dict[str, Any]:
        """Return the facts as a dictionary."""
        return asdict(self)


def answers(
    run: Run, batches: Iterable[Batch], advance: Callable[[], Any] = lambda: None
) -> Iterator[list[Array]]:
    """Yield the outputs of every batch: a masked-language model's are gigabytes in all."""
    for batch in batches:
        yield run(batch)
        advance()


def compare(reference: Iterable[Sequence[Array]], other: Iterable[Sequence[Array]]) -> Agreement:
    """Compare outputs, batch by batch, output by output; NaN in one of them is an infinite difference.

    Raises:
        CheckError: different numbers of outputs, or shapes.
    """
    largest = difference = total = 0.0
    count = same = places = inputs = 0
    for expected, found in zip(reference, other, strict=True):
        if [array.shape for array in expected] != [array.shape for array in found]:
            raise CheckError(
                f"outputs of shapes {[array.shape for array in found]}, "
                f"torch has {[array.shape for array in expected]}"
            )
        inputs += expected[0].shape[0]
        for ours, theirs in zip(expected, found, strict=True):
            gaps = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
            gaps = np.where(np.isnan(gaps), np.inf, gaps)
            largest = max(largest, float(np.abs(ours).max()))
            difference = max(difference, float(gaps.max()))
            total += float(gaps.sum())
            count += gaps.size
            same += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
            places += ours.size // ours.shape[-1]
    return Agreement(inputs, largest, difference, total / count, same / places)


def must_agree(agreement: Agreement, tolerance: float, what: str, note: str = "") -> None:
    """Refuse an export, `what`, that answers differently; `note` ends the message.

    Raises:
        CheckError: with both numbers.
    """
    if not agreement.within(tolerance):
        raise CheckError(
            f"{what}: differs from torch by up to {agreement.max_difference:.3g} on {agreement.inputs} inputs; "
            f"allowed are {tolerance:g} x {max(1.0, agreement.largest_output):.3g}{note}"
        )
