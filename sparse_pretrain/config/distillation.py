"""Recipe section of knowledge distillation."""

from typing import Literal

from pydantic import Field

from sparse_pretrain.config.base import ModelSource, Section


class DistillationSection(Section):
    """Knowledge distillation inside the training step (Hinton et al. 2015; 0.5/0.5 and T = 2 in the paper).

    loss = mlm_weight x MLM (+ NSP) + kd_weight x T^2 KL(teacher/T || student/T), the latter averaged
    over all non-padding positions.
    """

    teacher: ModelSource = Field(
        description="Hugging Face name or folder: a release of the teacher preparation"
    )
    mlm_weight: float = Field(0.5, ge=0)
    kd_weight: float = Field(0.5, gt=0)
    temperature: float = Field(2.0, gt=0)
    placement: Literal["replicated", "sharded"] = Field(
        "replicated", description="a copy on every rank, or one copy sharded over the ranks (ZeRO-3)"
    )
