"""Which checkpoints may be deleted."""

from collections.abc import Collection, Sequence


def steps_to_delete(
    steps: Sequence[int], last: int, every: int | None = None, broken: Collection[int] = ()
) -> list[int]:
    """Return the steps whose checkpoints are not kept, ascending.

    Kept are the newest `last` whole ones and, for ever, whole ones at multiples of `every`. Broken ones
    count for nothing, and are not kept once there are `last` whole ones: until then they may be all that
    a person can still repair.

    Args:
        steps: of all checkpoints.
        last: at least 1.
        every: steps; None: only the newest are kept.
        broken: steps of checkpoints that are known to be not whole.
    """
    if last < 1:
        raise ValueError(f"last = {last}: the newest checkpoint is always kept")
    whole = sorted(set(steps) - set(broken))
    kept = set(whole[-last:]) | {step for step in whole if every and step % every == 0}
    if len(whole) < last:
        kept |= set(broken)
    return sorted(set(steps) - kept)
