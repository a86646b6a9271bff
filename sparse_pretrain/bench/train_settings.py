"""What the training benchmark measures, and how its numbers are shown; loads neither torch nor DeepSpeed."""

from collections.abc import Sequence
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from sparse_pretrain.bench.mask_settings import SHAPES as MASK_SHAPES
from sparse_pretrain.config.base import Section

Mode = Literal["dense", "pruning", "pruning + teacher"]
Side = Literal["reference", "ours"]
Precision = Literal["bf16", "fp32"]
PRECISIONS: tuple[Precision, ...] = ("bf16", "fp32")
MODES: tuple[Mode, ...] = ("dense", "pruning", "pruning + teacher")
TextKind = Literal["long", "mixed"]
# Plays of 120,000 characters, whose pairs fill most of a padded row; the same with lead paragraphs and reviews of
# 500, whose pairs don't. Wikipedia and BookCorpus are between the two.
TEXTS: dict[TextKind, tuple[str, ...]] = {
    "long": ("shakespeare",),
    "mixed": ("wiki-leads", "shakespeare", "movie-reviews"),
}
SHAPES: dict[str, dict[str, int]] = {
    **MASK_SHAPES,
    "minilm-l6": {
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    },
}
# Row slots of a micro-batch on a CPU, as the reference was measured (4 x 512).
SLOTS = 2048


class Case(Section):
    """One machine set-up in which all modes are measured on both sides; the result repeats it."""

    model: str = "bert-base"
    length: int = 512
    ranks: int = 1
    precision: Precision = "bf16"
    rows: int = 4
    steps: int = 4
    warmup: int = 1
    compile: bool = False


class Measurement(Section):
    """What one set of processes measures."""

    case: Case
    side: Side
    mode: Mode
    pairs: str
    packed: str
    start: str
    profile: bool = False


class LossCheck(Section):
    """Both sides from one state on the same tokens, on one rank."""

    measurement: Measurement
    steps: int = 200
    seed: int = 0
    dropout: bool = True


def cases(
    models: Sequence[str],
    lengths: Sequence[int],
    ranks: Sequence[int],
    precisions: Sequence[Precision],
    slots: int = SLOTS,
    **others: Any,
) -> list[Case]:
    """Return every combination, each with as many row slots a rank; `others` are settings of all of them."""
    return [
        Case(
            model=model,
            length=length,
            ranks=count,
            precision=precision,
            rows=max(1, slots // length),
            **others,
        )
        for model in models
        for precision in precisions
        for length in lengths
        for count in ranks
    ]


def render(numbers: dict[str, Any], console: Console) -> None:
    """Print one line a case."""
    table = Table(
        "case",
        "tokens/s, ours",
        "reference",
        "ratio (dense, pruning, + teacher)",
        "per slot",
        "memory",
        "MFU, dense",
        "pruning costs",
        "teacher costs",
        title=f"real tokens a second of {numbers['text']} documents, side by side on {numbers['device']}, torch "
        f"{numbers['torch']}",
    )
    for case in numbers["cases"]:
        both = case["modes"][MODES[-1]]
        ratios = ", ".join(f"{case['modes'][mode]['tokens_per_s_ratio']:.2f}x" for mode in MODES)
        ranks = f"{case['ranks']} rank{'s' if case['ranks'] > 1 else ''}"
        compiled = ", compiled" if case["compile"] else ""
        table.add_row(
            f"{case['model']}, {case['rows']} x {case['length']}, {case['precision']}, {ranks}{compiled}",
            f"{both['ours']['tokens_per_s']:,.0f}",
            f"{both['reference']['tokens_per_s']:,.0f}",
            ratios,
            f"{case['step_ratio']:.2f}x",
            f"{case['memory_ratio']:.2f}x",
            f"{case['mfu']:.1%}",
            f"{case['prune_overhead']:+.1%}",
            f"{case['teacher_overhead']:.2f}x",
        )
    console.print(table)
