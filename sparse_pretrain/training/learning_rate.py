"""Learning-rate factors, pure functions of the number of steps done."""

from dataclasses import dataclass

from sparse_pretrain.config.recipe import TrainRecipe


@dataclass(frozen=True)
class Rewind:
    """The stretch of steps [start, end) in which the decay is replayed every `interval` steps."""

    start: int
    end: int
    interval: int


def linear_factor(step: int, warmup: int, total: int) -> float:
    """Return the factor of linear warm-up from 0 to 1, then linear decay to 0 at `total`."""
    if step < warmup:
        return step / warmup
    return max(0.0, (total - step) / max(1, total - warmup))


def rewinding_factor(step: int, warmup: int, total: int, rewind: Rewind) -> float:
    """Return the factor of linear warm-up and decay, replayed once per mask update during the ramp.

    Learning-rate rewinding as Prune Once for All uses it (section 4 and its reference code): with
    D = total - (end - start), the factor is (D - t) / (D - warmup) before the ramp,
    (D - t + floor((t - start) / interval) * interval) / (D - warmup) inside it, and
    (total - t) / (D - warmup) after it, never below 0. It exceeds 1 slightly at each replay's start
    when the ramp begins before the warm-up ends; so does the reference's.

    Args:
        step: optimizer steps done so far.
        warmup: steps of linear warm-up.
        total: steps of the run.
        rewind: the pruning ramp and its update frequency, in steps.
    """
    if step < warmup:
        return step / warmup
    decay = total - (rewind.end - rewind.start)
    if step < rewind.start:
        left = decay - step
    elif step < rewind.end:
        left = decay - step + (step - rewind.start) // rewind.interval * rewind.interval
    else:
        left = total - step
    return max(0.0, left / (decay - warmup))


def cyclic_factor(step: int, warmup: int, cycle: int, final: float) -> float:
    """Return the factor that falls linearly from 1 to `final` in every cycle, and then starts again at 1.

    1 - (1 - final) (t mod cycle) / cycle, as oBERT's upstream pruning has it (Kurtic et al. 2022 and their
    published recipe: 5e-4 to 5e-6 in every quarter epoch, a mask update at every peak). Cycles count from
    step 0, so that peaks meet mask updates of the same frequency; a warm-up scales the start by t / warmup.

    Args:
        step: optimizer steps done so far.
        warmup: steps of linear warm-up; 0: none.
        cycle: steps from one peak to the next.
        final: factor at the end of a cycle, in [0, 1).
    """
    factor = 1.0 - (1.0 - final) * (step % cycle) / cycle
    return factor * step / warmup if step < warmup else factor


def learning_rate_at(step: int, recipe: TrainRecipe) -> float:
    """Return the learning rate of the optimizer step that follows `step` finished ones."""
    peak, section, kind = recipe.optimizer.learning_rate, recipe.learning_rate, recipe.learning_rate.kind
    if kind == "rewinding" and recipe.pruning is not None:
        ramp = recipe.pruning
        rewind = Rewind(ramp.begin, ramp.ramp_end, ramp.frequency)
        return peak * rewinding_factor(step, recipe.warmup_steps, recipe.steps, rewind)
    if section.cycle_steps is not None:
        return peak * cyclic_factor(step, recipe.warmup_steps, section.cycle_steps, section.final_factor)
    if kind == "linear":
        return peak * linear_factor(step, recipe.warmup_steps, recipe.steps)
    return peak * min(1.0, step / recipe.warmup_steps if recipe.warmup_steps else 1.0)
