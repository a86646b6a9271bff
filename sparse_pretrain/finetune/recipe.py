"""The recipe of `sparse-pretrain finetune`."""

from typing import Literal

from pydantic import ConfigDict, Field, model_validator

from sparse_pretrain.config.base import Section, UserPath

Kind = Literal["classification", "regression"]
Precision = Literal["auto", "fp32", "bf16"]
Metric = Literal["accuracy", "f1", "matthews", "pearson", "spearman", "rmse"]
METRICS_OF_KIND: dict[Kind, tuple[Metric, ...]] = {
    "classification": ("accuracy", "f1", "matthews"),
    "regression": ("spearman", "pearson", "rmse"),
}


class TaskSection(Section):
    """A labelled task: local files, or splits of a `datasets` name, and what their columns mean.

    Files are told apart by their ending: .csv, .tsv, .jsonl, .parquet. Without `validation`, a fixed
    part of `train`, drawn with `split_seed`, is held out.
    """

    # Labels and filter values are compared as text; people write `labels: [0, 1]` all the same.
    model_config = ConfigDict(coerce_numbers_to_str=True)

    kind: Kind
    dataset: str | None = Field(
        None, description="`datasets` name; train, validation and test are then its splits"
    )
    subset: str | None = Field(None, description="configuration of the dataset, such as mnli of glue")
    train: str = Field(description="file, or split of `dataset`")
    validation: str | None = Field(None, description="file or split; none: held out from train")
    test: str | None = None
    more_validation: dict[str, str] = Field(
        default_factory=dict, description="further validation sets by name, such as MNLI's mismatched one"
    )
    text: str = Field(description="column of the (first) sentence")
    text_pair: str | None = Field(None, description="column of the second sentence")
    pair_encoding: Literal["joint", "separate"] = Field(
        "joint",
        description="joint: both sentences in one input; separate: each by itself, scored by the cosine of their "
        "mean token vectors (regression only), which weak encoders learn from few pairs",
    )
    label: str = Field(description="column of the label")
    columns: list[str] = Field(
        default_factory=list,
        description="column names of CSV/TSV files that have no header; extra fields are ignored",
    )
    delimiter: str | None = Field(
        None, min_length=1, max_length=1, description="default: tab for .tsv, else comma"
    )
    quoted: bool = Field(True, description="False: quotation marks in CSV/TSV files are plain characters")
    where: dict[str, str] = Field(default_factory=dict, description="keep rows whose column has this value")
    labels: list[str] = Field(
        default_factory=list,
        description="classes in the order of their numbers; none: those of train, sorted",
    )
    label_scale: float = Field(1.0, gt=0, description="regression: labels are divided by it for training")
    validation_size: int | float = Field(
        0.1,
        gt=0,
        description="examples (whole number) or share (below 1) held out when there is no validation",
    )
    split_seed: int = Field(
        0, ge=0, description="of the held-out part and of the limits; not the training seed"
    )
    limit_train: int | None = Field(None, ge=1, description="use a random subset of this many examples")
    limit_validation: int | None = Field(None, ge=1)
    metric: Metric | None = Field(None, description="the headline number; none: accuracy or spearman")

    @property
    def headline(self) -> Metric:
        """The metric that a table of results shows."""
        return self.metric or METRICS_OF_KIND[self.kind][0]

    @model_validator(mode="after")
    def _fits_together(self) -> "TaskSection":
        allowed = METRICS_OF_KIND[self.kind]
        if self.headline not in allowed:
            raise ValueError(
                f"metric = {self.metric!r} does not fit {self.kind}; one of {', '.join(allowed)}"
            )
        if self.kind == "regression" and self.labels:
            raise ValueError(
                "labels are the classes of a classification; remove them or set kind: classification"
            )
        if self.kind == "classification" and self.label_scale != 1.0:
            raise ValueError("label_scale is for regression; remove it or set kind: regression")
        if isinstance(self.validation_size, float) and self.validation_size >= 1:
            raise ValueError(
                f"validation_size = {self.validation_size}: a share below 1, or a whole number of examples"
            )
        if self.pair_encoding == "separate" and (self.kind != "regression" or self.text_pair is None):
            raise ValueError(
                "pair_encoding = 'separate' scores the likeness of two sentences: it needs kind: regression "
                "and text_pair"
            )
        if self.subset is not None and self.dataset is None:
            raise ValueError("subset belongs to dataset; give dataset too")
        return self


class TrainingSection(Section):
    """How it is trained: AdamW, linear warm-up and decay, batches of sentences of like length."""

    epochs: int = Field(3, ge=1)
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(5e-5, gt=0)
    warmup_ratio: float = Field(0.1, ge=0, lt=1, description="share of all steps")
    weight_decay: float = Field(0.01, ge=0)
    gradient_clipping: float = Field(1.0, ge=0, description="maximum gradient norm; 0: no clipping")
    max_length: int = Field(128, ge=4, description="tokens; longer inputs are cut")
    precision: Precision = Field("auto", description="auto: bf16 where the hardware is fast at it")
    dropout: float | None = Field(None, ge=0, lt=1, description="every dropout of the model; none: its own")
    evaluate: Literal["epoch", "end"] = Field("epoch", description="when to measure the validation set")


class FinetuneRecipe(Section):
    """Everything a fine-tuning run needs to know."""

    output: UserPath = Field(description="run folder: model, metrics, resolved recipe")
    overwrite: bool = Field(False, description="replace a finished run in the output folder")
    model: str = Field(description="release, model folder, or hub name")
    seed: int = Field(42, ge=0)
    masks: Literal["lock", "ignore"] = Field(
        "lock", description="lock: zeros stay zero, from masks.safetensors or else the zeros themselves"
    )
    task: TaskSection
    training: TrainingSection = TrainingSection()
