"""The recipe of `sparse-pretrain finetune`."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from sparse_pretrain.config.base import ModelSource, Section, UserPath

Kind = Literal["classification", "regression", "tokens", "choice", "span"]
Precision = Literal["auto", "fp32", "bf16"]
Metric = Literal[
    "accuracy", "f1", "matthews", "pearson", "spearman", "rmse", "precision", "recall", "exact_match"
]
METRICS_OF_KIND: dict[Kind, tuple[Metric, ...]] = {
    "classification": ("accuracy", "f1", "matthews"),
    "regression": ("spearman", "pearson", "rmse"),
    "tokens": ("f1", "precision", "recall", "accuracy"),
    "choice": ("accuracy",),
    "span": ("f1", "exact_match"),
}
AUTO = "auto"
LearningRate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class SpanSection(Section):
    """How long contexts are cut and answers chosen (question answering; the defaults of BERT's SQuAD script)."""

    stride: int = Field(128, ge=0, description="tokens that two neighbouring windows of a context share")
    n_best: int = Field(20, ge=1, description="starts and ends a window, and spans a question, looked at")
    max_answer_length: int = Field(30, ge=1, description="tokens of the longest answer")
    no_answer: bool = Field(False, description="questions may have no answer (SQuAD 2.0)")
    null_threshold: float = Field(
        0.0, description="no answer when its score beats the best span's by more than this"
    )


class TaskSection(Section):
    """A labelled task: local files, or splits of a `datasets` name, and what their columns mean.

    Files are told apart by their ending: .csv, .tsv, .jsonl, .parquet (question answering: .json as SQuAD has
    it, too). Without `validation`, a fixed part of `train`, drawn with `split_seed`, is held out.
    """

    # Labels and filter values are compared as text; people write `labels: [0, 1]` all the same.
    model_config = ConfigDict(coerce_numbers_to_str=True)

    kind: Kind = Field(
        description="classification, regression: of a sentence or pair; tokens: a tag for every word; choice: one of "
        "several endings; span: an answer inside a context"
    )
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
    text: str = Field(
        description="column of the (first) sentence; tokens: of the words; span: of the question"
    )
    text_pair: str | None = Field(
        None,
        description="column of the second sentence; choice: of what stands before every ending; span: of the context",
    )
    choices: list[str] = Field(default_factory=list, description="choice: columns of the endings, in order")
    pair_encoding: Literal["joint", "separate"] = Field(
        "joint",
        description="joint: both sentences in one input; separate: each by itself, scored by the cosine of their "
        "mean token vectors (regression only), which weak encoders learn from few pairs",
    )
    label: str = Field(description="column of the label; tokens: of the tags; span: of the answers")
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
    metric: Metric | None = Field(
        None, description="the headline number; none: accuracy, spearman (regression) or f1 (tokens, span)"
    )
    span: SpanSection = SpanSection()

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
        if self.kind not in ("classification", "tokens") and self.labels:
            raise ValueError(
                "labels are the classes of a classification; remove them or set kind: classification"
            )
        if self.kind != "regression" and self.label_scale != 1.0:
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
        if (self.kind == "choice") != (len(self.choices) > 1):
            raise ValueError("choices are the columns of two endings or more, of kind: choice and no other")
        if self.kind == "span" and self.text_pair is None:
            raise ValueError("kind: span needs text (the question's column) and text_pair (the context's)")
        if self.kind == "tokens" and self.text_pair is not None:
            raise ValueError("kind: tokens has no text_pair; remove it")
        return self


class DistillationSection(Section):
    """Learn from a dense model that was fine-tuned on the same task (Hinton et al. 2015).

    loss = (1 - weight) x task + weight x KD, with KD = T^2 KL(teacher/T || student/T), averaged over examples
    (tokens: over words; span: mean of start and end); for a regression the squared distance of the two scores.
    The defaults are the reference's (Model-Compression-Research-Package, examples/transformers).
    """

    teacher: ModelSource = Field(
        description="a fine-tuned model (run, folder or hub name), or auto: `dense` is fine-tuned first, once"
    )
    dense: ModelSource | None = Field(
        None, description="teacher: auto: the dense model that becomes the teacher, by this same recipe"
    )
    teachers: UserPath | None = Field(
        None, description="teacher: auto: folder of trained teachers; none: `teachers` beside the output"
    )
    temperature: float = Field(2.0, gt=0, allow_inf_nan=False)
    weight: float = Field(0.5, gt=0, le=1, description="share of the teacher in the loss")

    @model_validator(mode="after")
    def _auto_needs_a_dense_model(self) -> "DistillationSection":
        if self.teacher == AUTO and self.dense is None:
            raise ValueError(
                "teacher: auto needs dense, the model that becomes the teacher, such as google-bert/bert-base-uncased"
            )
        if self.teacher != AUTO and self.dense is not None:
            raise ValueError("dense belongs to teacher: auto; remove one of them")
        return self


class QuantizationSection(Section):
    """Train with int8 in the loop (Q8BERT, Zafrir et al. 2019): forward rounds weights and activations, gradients
    pass as if it did not. The section turns it on; `quantization={}` does so with the defaults.

    Weights: symmetric, by the largest magnitude of each matrix. Activations: 256 levels over a range that follows the
    batches and then stands still. Evaluation is in fp32: what int8 engines compute.
    """

    bits: Literal[8] = 8
    momentum: float = Field(
        0.01, gt=0, le=1, description="share of a new batch in the ranges' moving average"
    )
    calibration_steps: int = Field(
        20, ge=1, description="first optimizer steps: ranges are observed, nothing is rounded yet"
    )
    freeze_after: int | float = Field(
        0.8,
        gt=0,
        description="ranges stand still from this step (whole number), or share of all steps (1.0 or less), on",
    )

    @model_validator(mode="after")
    def _ranges_are_observed_before_they_freeze(self) -> "QuantizationSection":
        if isinstance(self.freeze_after, float) and self.freeze_after > 1:
            raise ValueError(
                f"freeze_after = {self.freeze_after}: a share up to 1.0, or a whole number of steps"
            )
        if isinstance(self.freeze_after, int) and self.freeze_after < self.calibration_steps:
            raise ValueError(
                f"freeze_after = {self.freeze_after}: ranges are observed for calibration_steps = "
                f"{self.calibration_steps} at least"
            )
        return self

    def freeze_step(self, steps: int) -> int:
        """Return the optimizer step, counted from 0, from which ranges stand still in a run of `steps`."""
        share = isinstance(self.freeze_after, float)
        return max(
            self.calibration_steps, round(self.freeze_after * steps) if share else int(self.freeze_after)
        )


class TrainingSection(Section):
    """How it is trained: AdamW, linear warm-up and decay, batches of sentences of like length."""

    epochs: int = Field(3, ge=1)
    batch_size: int = Field(
        32, ge=1, description="examples of an optimizer step, over all ranks; a multiple of their number"
    )
    zero_stage: Literal[1, 2, 3] | None = Field(
        None,
        description="DeepSpeed ZeRO: 1 shares the optimizer's state among the ranks, 2 gradients too, 3 weights too; "
        "none: every rank has all of it (DDP)",
    )
    learning_rate: float = Field(5e-5, gt=0)
    warmup_ratio: float = Field(0.1, ge=0, lt=1, description="share of all steps")
    weight_decay: float = Field(0.01, ge=0)
    gradient_clipping: float = Field(1.0, ge=0, description="maximum gradient norm; 0: no clipping")
    max_length: int = Field(
        128, ge=4, description="tokens; longer inputs are cut (span: in windows that overlap)"
    )
    precision: Precision = Field("auto", description="auto: bf16 where the hardware is fast at it")
    dropout: float | None = Field(None, ge=0, lt=1, description="every dropout of the model; none: its own")
    evaluate: Literal["epoch", "end"] = Field("epoch", description="when to measure the validation set")


class SweepSection(Section):
    """What `finetune --sweep` tries: every combination. The defaults are the ranges of Devlin et al. 2019 (A.3),
    more epochs added, from which sparse models gain.
    """

    learning_rate: list[LearningRate] = Field([2e-5, 3e-5, 5e-5], min_length=1)
    epochs: list[Count] = Field([3, 4, 8], min_length=1)


class FinetuneRecipe(Section):
    """Everything a fine-tuning run needs to know."""

    output: UserPath = Field(description="run folder: model, metrics, resolved recipe")
    overwrite: bool = Field(False, description="replace a finished run in the output folder")
    model: str = Field(description="release, model folder, or hub name")
    seed: int = Field(42, ge=0)
    seeds: list[Seed] = Field(
        default_factory=list, description="one run for each of these instead: mean and deviation in one table"
    )
    masks: Literal["lock", "require", "ignore"] = Field(
        "lock",
        description="lock: zeros stay zero, from masks.safetensors or else the zeros themselves; require: the same, "
        "and a dense model is refused; ignore: all weights train",
    )
    task: TaskSection
    training: TrainingSection = TrainingSection()
    distillation: DistillationSection | None = None
    quantization: QuantizationSection | None = None
    sweep: SweepSection = SweepSection()

    @model_validator(mode="after")
    def _seeds_differ(self) -> "FinetuneRecipe":
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds = {self.seeds}: each only once")
        return self
