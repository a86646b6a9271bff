"""How soft the teacher's answers are, over the run."""

from sparse_pretrain.config.distillation import DistillationSection


def temperature_at(step: int, steps: int, section: DistillationSection) -> float:
    """Return the temperature of optimizer step number `step` of `steps`, counted from 0.

    T(t) = T_0 + (T_1 - T_0) t / (steps - 1): the first step has `temperature`, the last one
    `temperature_end`; without the latter it stays.
    """
    first, last = section.temperature, section.temperature_end
    if last is None or steps <= 1:
        return first
    return first + (last - first) * step / (steps - 1)
