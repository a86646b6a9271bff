"""How long the demo's stages run: minutes on two cores, or the longer version."""

from dataclasses import dataclass

RANKS = 2


@dataclass(frozen=True)
class Task:
    """A fine-tuning task of the demo.

    Attributes:
        name: of its folder and its rows in the report.
        recipe: the shipped recipe.
        title: for the table.
        overrides: `key=value` changes that make it short.
    """

    name: str
    recipe: str
    title: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class DemoSize:
    """Overrides of the demo's recipes, by stage."""

    teacher: tuple[str, ...]
    prune: tuple[str, ...]
    tasks: tuple[Task, ...]


MOVIES = ("movie-sentiment", "finetune-movie-sentiment", "film reviews, positive or negative")
PAIRS = ("sts-b", "finetune-sts-b", "likeness of two sentences (STS-B)")

ONE_EPOCH = ("training.epochs=1", "training.evaluate=end")

SHORT = DemoSize(
    teacher=(),
    prune=(),
    tasks=(
        Task(*MOVIES, overrides=(*ONE_EPOCH, "task.limit_train=6000")),
        Task(*PAIRS, overrides=(*ONE_EPOCH, "task.limit_train=3000")),
    ),
)

# Eight times the pruning, everything labelled: an hour or more on two cores.
FULL = DemoSize(
    teacher=("steps=1000", "checkpoint.every=250", "evaluation.every=250"),
    prune=(
        "steps=2000",
        "pruning.ramp_end=1000",
        "pruning.end=1600",
        "pruning.frequency=20",
        "checkpoint.every=250",
        "evaluation.every=250",
    ),
    tasks=(Task(*MOVIES, overrides=()), Task(*PAIRS, overrides=())),
)
