"""Trainable bridges between the student's and a teacher's width; part of training, never of a release."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn

from sparse_pretrain.data.order import key_of

# In front of their parameters' names, in the engine and in checkpoints; no Hugging Face name begins so.
PROJECTION_PREFIX = "distillation.projection."


class Widths(NamedTuple):
    """Numbers of features going in (the student's) and coming out (the teacher's)."""

    student: int
    teacher: int


def build_projections(widths: Mapping[str, Widths], seed: int) -> nn.ModuleDict:
    """Return one linear map without bias for each name, fp32 on the CPU.

    Values are drawn from N(0, 1 / student width), which keeps the size of a feature, by a generator of
    their own: a function of (seed, name), the same on every rank. Torch's global generator is not touched.
    """
    projections = {}
    for name, width in widths.items():
        linear = nn.utils.skip_init(nn.Linear, width.student, width.teacher, bias=False)
        generator = torch.Generator().manual_seed(key_of("projection", seed, name) % 2**63)
        nn.init.normal_(linear.weight, std=width.student**-0.5, generator=generator)
        projections[name] = linear
    return nn.ModuleDict(projections)


def is_projection(parameter: str) -> bool:
    """Say whether a parameter's name is that of a projection."""
    return parameter.startswith(PROJECTION_PREFIX)
