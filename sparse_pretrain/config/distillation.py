"""Recipe section of knowledge distillation."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from sparse_pretrain.config.base import ModelSource, Section, UserPath

Layer = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Positions = Literal["all", "masked"]


class EmbeddingsSection(Section):
    """Mean squared distance of the embedding layers' outputs (TinyBERT, Jiao et al. 2020, eq. 9)."""

    weight: Positive = Field(1.0, description="beside the logits' loss, which has logits_weight")


class HiddenSection(Section):
    """Mean squared distance of the outputs of encoder layers (TinyBERT, Jiao et al. 2020, eq. 8)."""

    weight: Positive = Field(1.0, description="beside the logits' loss, which has logits_weight")
    layers: dict[Layer, Layer] | None = Field(
        None,
        min_length=1,
        description="teacher layer by student layer, both from 1; none: evenly, student layer i of S follows "
        "teacher layer i T / S",
    )


class AttentionSection(HiddenSection):
    """Mean squared distance of attention probabilities (TinyBERT, eq. 7, after the softmax)."""


class DistillationSection(Section):
    """Knowledge distillation inside the training step (Hinton et al. 2015; 0.5/0.5 and T = 2 in the paper).

    loss = mlm_weight x MLM (+ NSP) + kd_weight x KD, and KD = logits_weight x logits + hidden.weight x
    hidden + attention.weight x attention + embeddings.weight x embeddings, with logits =
    T^2 KL(teacher/T || student/T) averaged over `positions`. See docs/distillation.md.
    """

    teacher: ModelSource | list[ModelSource] = Field(
        description="Hugging Face name or folder: a release of the teacher preparation; or a list of them"
    )
    teacher_weights: list[Positive] | None = Field(
        None, description="one number a teacher, relative to each other; none: all the same"
    )
    mlm_weight: float = Field(0.5, ge=0, allow_inf_nan=False)
    kd_weight: Positive = 0.5
    logits_weight: float = Field(
        1.0, ge=0, allow_inf_nan=False, description="of the logits' loss inside KD; 0: none of it"
    )
    temperature: Positive = 2.0
    temperature_end: Positive | None = Field(
        None, description="temperature of the last step, reached linearly; none: it stays"
    )
    positions: Positions = Field(
        "all", description="where logits are compared: every non-padding position, or the predicted ones"
    )
    hidden: HiddenSection | None = None
    attention: AttentionSection | None = None
    embeddings: EmbeddingsSection | None = None
    precomputed: UserPath | None = Field(
        None, description="folder made by `sparse-pretrain teacher-logits`: read it, run no teacher"
    )
    placement: Literal["replicated", "sharded"] = Field(
        "replicated", description="a copy on every rank, or one copy sharded over the ranks (ZeRO-3)"
    )

    @field_validator("teacher", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        # Before the union is tried: it would complain once for each of its members.
        names = value if isinstance(value, list) else [value]
        if not names or not all(isinstance(name, str) and name for name in names):
            raise ValueError("give a Hugging Face name or folder, or a list of them")
        return value

    @model_validator(mode="after")
    def _agrees(self) -> "DistillationSection":
        if self.teacher_weights is not None and len(self.teacher_weights) != len(self.teachers):
            raise ValueError(
                f"teacher_weights has {len(self.teacher_weights)} numbers for {len(self.teachers)} teachers"
            )
        if not (self.logits_weight or self.hidden or self.attention or self.embeddings):
            raise ValueError(
                "logits_weight = 0 leaves nothing to follow: add hidden, attention or embeddings"
            )
        if self.precomputed is not None:
            check_precomputable(self)
        return self

    @property
    def teachers(self) -> list[str]:
        """The teachers' names or folders."""
        return [self.teacher] if isinstance(self.teacher, str) else list(self.teacher)

    @property
    def shares(self) -> list[float]:
        """What each teacher counts, in the teachers' order; they sum to 1."""
        weights = self.teacher_weights or [1.0] * len(self.teachers)
        return [weight / sum(weights) for weight in weights]

    @property
    def needs_all_logits(self) -> bool:
        """Whether heads must run at every non-padding position instead of the predicted ones."""
        return self.logits_weight > 0 and self.positions == "all"


def check_precomputable(section: DistillationSection) -> None:
    """Refuse what stored logits cannot replace.

    Raises:
        ValueError: saying which key stands in the way.
    """
    if len(section.teachers) > 1:
        raise ValueError("precomputed logits are those of one teacher; teacher is a list")
    if section.temperature_end is not None:
        raise ValueError("precomputed logits belong to one temperature; remove temperature_end")
    if not section.logits_weight:
        raise ValueError("precomputed logits serve the logits' loss only; logits_weight is 0")
    for name in ("hidden", "attention", "embeddings"):
        if getattr(section, name) is not None:
            raise ValueError(f"precomputed logits serve the logits' loss only; remove {name}")
