"""A piece of a training step: what it computes and what it moves, before anyone says how fast."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

Term = Literal[
    "student matmuls",
    "student attention",
    "student elementwise",
    "vocabulary and losses",
    "teacher",
    "gradients",
    "optimizer",
    "masks",
    "mask updates",
    "loop",
]
TERMS: tuple[Term, ...] = get_args(Term)


@dataclass(frozen=True)
class Work:
    """One kernel's work on one rank.

    Attributes:
        term: what it is called in reports.
        kernel: whose measured constants apply (`measure`), where there are some.
        flops: multiplications and additions of matrix products.
        elements: what the kernel's time grows with beside them; each kernel counts its own.
        bytes: moved to and from the device's memory, by formula (docs/planning.md).
        calls: kernels that the host has to start.
    """

    term: Term
    kernel: str
    flops: float = 0.0
    elements: float = 0.0
    bytes: float = 0.0
    calls: float = 1.0

    def times(self, count: float) -> "Work":
        """Return the same work `count` times."""
        return replace(
            self,
            flops=self.flops * count,
            elements=self.elements * count,
            bytes=self.bytes * count,
            calls=self.calls * count,
        )
