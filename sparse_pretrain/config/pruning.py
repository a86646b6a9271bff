"""Recipe section of pruning: when, how much, which groups, by which score."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from sparse_pretrain.config.base import Section

Share = Annotated[float, Field(ge=0, lt=1)]
Pool = Literal["mean", "max", "l2"]


class ElementStructure(Section):
    """Single weights."""

    kind: Literal["element"] = "element"


class BlockStructure(Section):
    """Rectangles of a weight [outputs, inputs], kept or pruned whole; smaller ones at ragged edges."""

    kind: Literal["block"]
    rows: int = Field(ge=1, description="height, along the outputs")
    columns: int = Field(ge=1, description="width, along the inputs")
    pool: Pool = Field("mean", description="a block's score from its weights' scores")


class NofMStructure(Section):
    """At most `keep` of every `of` consecutive weights along the input dimension (2 of 4 for GPUs)."""

    kind: Literal["n_of_m"]
    keep: int = Field(2, ge=1)
    of: int = Field(4, ge=2)

    @model_validator(mode="after")
    def _prunes(self) -> "NofMStructure":
        if self.keep >= self.of:
            raise ValueError(f"keep must be below of, got {self.keep} of {self.of}")
        return self

    @property
    def sparsity(self) -> float:
        """Share of zeros that the pattern means, in (0, 1)."""
        return 1.0 - self.keep / self.of


class LineStructure(Section):
    """Whole rows (output neurons) or columns (input neurons) of a weight."""

    kind: Literal["rows", "columns"]
    pool: Pool = "mean"


class CoupledStructure(Section):
    """Attention heads and feed-forward channels: the rows and columns of several weights that work together.

    Weights that belong to neither stay dense.
    """

    kind: Literal["coupled"]
    of: list[Literal["heads", "channels"]] = Field(["heads", "channels"], min_length=1)
    pool: Pool = "mean"


StructureSection = Annotated[
    ElementStructure | BlockStructure | NofMStructure | LineStructure | CoupledStructure,
    Field(discriminator="kind"),
]


class AllocationBase(Section):
    """What every allocation may limit."""

    minimum_kept: Share = Field(0.0, description="share of every weight (or head/channel set) that stays")


class UniformAllocation(AllocationBase):
    """The same share of every weight (Prune Once for All, section 4)."""

    kind: Literal["uniform"] = "uniform"


class GlobalAllocation(AllocationBase):
    """The lowest scores anywhere: one threshold for all weights, or one for each named group of them."""

    kind: Literal["global"]
    groups: dict[str, list[str]] = Field(
        default_factory=dict,
        description="regular expressions over weight names by group; unnamed weights form one more group",
    )


class TableAllocation(AllocationBase):
    """A final share of its own for every weight whose name a pattern finds; the first that does, counts."""

    kind: Literal["table"]
    targets: dict[str, Share] = Field(
        min_length=1, description="final sparsity by regular expression; others get target_sparsity"
    )


AllocationSection = Annotated[
    UniformAllocation | GlobalAllocation | TableAllocation, Field(discriminator="kind")
]


class MagnitudeScorer(Section):
    """|w| of the fp32 master. `exclude_weight_decay`: undo the decay a weight suffered while pruned."""

    kind: Literal["magnitude"] = "magnitude"
    exclude_weight_decay: bool = False


class MovementScorer(Section):
    """-sum of gradient x weight since the last mask update (Sanh et al. 2020)."""

    kind: Literal["movement"]


class RandomScorer(Section):
    """A random order, fixed by the seed: the baseline that a score must beat."""

    kind: Literal["random"]
    seed: int = Field(0, ge=0)


class CustomScorer(Section):
    """A scorer of your own: an entry point of the group `sparse_pretrain.scorers`."""

    kind: Literal["custom"]
    name: str = Field(min_length=1, description="the entry point's name")
    options: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the factory")


ScorerSection = Annotated[
    MagnitudeScorer | MovementScorer | RandomScorer | CustomScorer, Field(discriminator="kind")
]


class MaskStorageSection(Section):
    """How masks are held in memory (on disk it is always one bit a weight)."""

    packed: bool = Field(False, description="one bit a weight instead of one byte; unpacked when applied")


class PruningSection(Section):
    """Gradual pruning (Zhu & Gupta 2017) as Prune Once for All uses it, section 4.

    Masks are updated after steps `begin`, `begin + frequency`, … up to `end`. The target rises from
    `initial_sparsity` at `begin` to `target_sparsity` at `ramp_end` and stays there; masks still
    refresh until `end`, then freeze.
    """

    target_sparsity: float = Field(ge=0, lt=1, description="share of zeros of the pruned weights at the end")
    initial_sparsity: float = Field(0.0, ge=0, lt=1)
    schedule: Literal["cubic", "linear", "exponential", "table", "one_shot", "constant"] = Field(
        "cubic",
        description="how the target rises; one_shot: all at begin, then frozen; constant: all from begin on",
    )
    table: dict[int, Share] = Field(
        default_factory=dict, description="schedule=table: sparsity from each step on, rising"
    )
    begin: int = Field(0, ge=0)
    ramp_end: int = Field(ge=0, description="not needed for one_shot, constant and table")
    end: int = Field(ge=0, description="not needed for one_shot")
    frequency: int = Field(1000, ge=1)
    regrowth: bool = Field(True, description="False: a pruned weight stays zero from then on")
    regrowth_until: int | None = Field(
        None, ge=0, description="with regrowth: the last update step at which weights may come back"
    )
    structure: StructureSection = ElementStructure()
    allocation: AllocationSection = UniformAllocation()
    scorer: ScorerSection = MagnitudeScorer()
    masks: MaskStorageSection = MaskStorageSection()
    include: list[str] = Field(
        default_factory=list, description="regular expressions over names; empty: all Linear of the encoder"
    )
    exclude: list[str] = Field(default_factory=list)

    @property
    def last_update(self) -> int:
        """Step after which masks are updated for the last time and freeze."""
        return self.begin + (self.end - self.begin) // self.frequency * self.frequency

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        """Fill in the steps that a schedule fixes by itself."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        begin, table = values.get("begin", 0), values.get("table")
        if values.get("schedule") == "one_shot":
            values.setdefault("ramp_end", begin)
            values.setdefault("end", begin)
        elif values.get("schedule") == "constant":
            values.setdefault("ramp_end", begin)
        elif values.get("schedule") == "table" and isinstance(table, dict) and table:
            values.setdefault("ramp_end", max(table, key=lambda step: int(step)))
        return values

    @model_validator(mode="after")
    def _schedule_fits(self) -> "PruningSection":
        rises = self.schedule in ("cubic", "linear", "exponential")
        if rises and not self.begin < self.ramp_end <= self.end:
            raise ValueError(f"need begin < ramp_end <= end, got {self.begin}, {self.ramp_end}, {self.end}")
        if not self.begin <= self.ramp_end <= self.end:
            raise ValueError(f"need begin <= ramp_end <= end, got {self.begin}, {self.ramp_end}, {self.end}")
        if self.schedule == "one_shot" and self.end != self.begin:
            raise ValueError(f"schedule = one_shot: end must be begin = {self.begin}, or left out")
        if self.initial_sparsity > self.target_sparsity:
            raise ValueError("initial_sparsity must not exceed target_sparsity")
        if self.last_update < self.ramp_end:
            raise ValueError(
                f"the last mask update is after step {self.last_update}, before the ramp ends at "
                f"{self.ramp_end}: the target would never be reached; raise end or change frequency"
            )
        if self.regrowth_until is not None and not self.regrowth:
            raise ValueError("regrowth_until needs regrowth: true")
        return self

    @model_validator(mode="after")
    def _table_fits(self) -> "PruningSection":
        if (self.schedule == "table") != bool(self.table):
            raise ValueError("table: needed with schedule = table, and only there")
        if not self.table:
            return self
        steps = sorted(self.table)
        values = [self.table[step] for step in steps]
        if values != sorted(values) or values[-1] != self.target_sparsity:
            raise ValueError("table: sparsities must rise with the steps and end at target_sparsity")
        if steps[0] < self.begin:
            raise ValueError(f"table: step {steps[0]} lies before begin = {self.begin}")
        if values[0] < self.initial_sparsity:
            raise ValueError(
                f"table: {values[0]:g} at step {steps[0]} lies below initial_sparsity = {self.initial_sparsity:g}"
            )
        if steps[-1] != self.ramp_end:
            raise ValueError(f"ramp_end: leave it out, the table's last step is {steps[-1]}")
        return self

    @model_validator(mode="after")
    def _structure_fits(self) -> "PruningSection":
        structure = self.structure
        if isinstance(structure, NofMStructure):
            if abs(self.target_sparsity - structure.sparsity) > 1e-9:
                raise ValueError(
                    f"target_sparsity = {self.target_sparsity}: {structure.keep} of {structure.of} means "
                    f"{structure.sparsity:g}"
                )
            if self.allocation.kind == "table" or self.allocation.minimum_kept:
                raise ValueError(
                    "structure n_of_m fixes the share of every weight: use allocation uniform or global"
                )
        self._check_floor()
        pool = getattr(structure, "pool", None)
        if pool == "l2" and self.scorer.kind == "movement":
            raise ValueError(
                "structure.pool = l2 needs scores that are not negative; movement has both signs"
            )
        return self

    def _check_floor(self) -> None:
        """Refuse a floor that the targets would have to break."""
        allocation = self.allocation
        targets = allocation.targets.values() if isinstance(allocation, TableAllocation) else ()
        highest = max(self.target_sparsity, *targets) if targets else self.target_sparsity
        if highest + allocation.minimum_kept > 1 + 1e-9:
            raise ValueError(
                f"allocation.minimum_kept = {allocation.minimum_kept:g} leaves at most "
                f"{1 - allocation.minimum_kept:g} to prune, the target is {highest:g}"
            )
