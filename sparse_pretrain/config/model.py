"""Recipe sections that say what is trained: model, data, masking."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from sparse_pretrain.config.base import ModelSource, Section, UserPath

Attention = Literal["auto", "sdpa", "eager"]
Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ModelSection(Section):
    """The student (and, through the same section, anything else that is loaded by name or folder)."""

    source: ModelSource | None = Field(
        None, description="Hugging Face name or folder of the model to start from"
    )
    pretrained: bool = Field(True, description="False: only the architecture of `source`, fresh weights")
    architecture: str | None = Field(
        None, description="model that `source` derives from: lets --dry-run plan before `source` exists"
    )
    config: dict[str, Any] = Field(
        default_factory=dict, description="architecture keys to set; needs model_type when there is no source"
    )
    dropout: float | None = Field(None, ge=0, lt=1, description="every dropout of the model; none: its own")
    attention: Attention = Field(
        "auto",
        description="auto: sdpa on GPUs; on CPUs one of our own, which torch's fused one is slower than",
    )

    @model_validator(mode="after")
    def _has_an_architecture(self) -> "ModelSection":
        if self.source is None and "model_type" not in self.config:
            raise ValueError("give source (a name or folder), or config.model_type to train from scratch")
        return self


class DataSection(Section):
    """The prepared folder, or several of them mixed by weight."""

    path: UserPath | None = Field(None, description="folder made by `sparse-pretrain data prepare`")
    mix: dict[UserPath, Weight] = Field(
        default_factory=dict,
        description="instead of path, several such folders and what each weighs: {data/wikipedia: 3, data/books: 1} "
        "takes three rows of four from the first",
    )

    @property
    def folders(self) -> tuple[Path, ...]:
        """Every prepared folder that training reads; its tokenizer comes from the first."""
        return (self.path,) if self.path is not None else tuple(self.mix)

    @model_validator(mode="after")
    def _one_way(self) -> "DataSection":
        if self.path is None and not self.mix:
            raise ValueError("give path, a prepared folder (or mix, several and their weights)")
        if self.path is not None and self.mix:
            raise ValueError(
                f"path = {str(self.path)!r} and mix are two ways to say one thing; set path=null"
            )
        return self


class MaskingSection(Section):
    """Dynamic token masking (Devlin et al. 2019, section 3.1), drawn anew every epoch."""

    probability: float = Field(0.15, gt=0, lt=1, description="share of tokens to predict")
    replace_by_mask: float = Field(0.8, ge=0, le=1, description="share of those shown as the mask token")
    replace_by_random: float = Field(0.1, ge=0, le=1, description="share shown as a random token")
    whole_word: bool = Field(False, description="choose whole words instead of single tokens")

    @model_validator(mode="after")
    def _shares_fit(self) -> "MaskingSection":
        if self.replace_by_mask + self.replace_by_random > 1:
            raise ValueError("replace_by_mask + replace_by_random must not exceed 1")
        return self
