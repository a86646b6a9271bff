"""Which faults a campaign injects: drawn from a seed, so that a failure can be looked at again."""

import random
from dataclasses import dataclass
from typing import Literal

Stop = Literal["kill-rank", "kill-all", "term-kill", "disk-before", "disk-middle"]
Aim = Literal["start", "anywhere", "save", "commit"]
After = Literal["nothing", "truncate", "flip", "delete", "partial", "replaced", "doubled"]

# Half of all kills are aimed inside a save, a third of these at the moment in which it gets its name.
AIMS: tuple[Aim, ...] = ("start", "anywhere", "anywhere", "save", "save", "commit")
STOPS: tuple[Stop, ...] = (*("kill-rank", "kill-all") * 4, "term-kill", "disk-before", "disk-middle")
AFTERS: tuple[After, ...] = (
    *("nothing",) * 4,
    *("truncate", "flip", "delete") * 2,
    *("partial", "replaced", "doubled"),
)


@dataclass(frozen=True)
class Fault:
    """How one start of a run is ended, and what is done to its folder afterwards.

    Attributes:
        stop: what ends it: `kill -9` of one rank, or of all and the launcher; SIGTERM and then kill -9 while it
            saves; a disk that is full before, or in the middle of, a save.
        aim: when a kill comes: while it starts, at any step, inside a save, when a save is committed.
        after: damage to the newest checkpoint, or what an earlier death may have left: a half-written save
            (`partial`), a checkpoint that was just being replaced (`replaced`, `doubled`: without and with
            the new one in its place).
        saves: how many saves of this start go well before.
        fraction: where inside the aim, in [0, 1).
    """

    stop: Stop
    aim: Aim
    after: After = "nothing"
    saves: int = 0
    fraction: float = 0.5


# What `make test` has time for.
FAST = (
    Fault("kill-all", "save", "flip", saves=2, fraction=0.5),
    Fault("kill-rank", "commit", "truncate", saves=1, fraction=0.1),
    Fault("disk-middle", "save", "delete", saves=1, fraction=0.5),
    Fault("term-kill", "anywhere", "partial", saves=0, fraction=0.4),
)


def draw_faults(count: int, seed: int) -> list[Fault]:
    """Return `count` faults; the same ones for the same seed."""
    generator = random.Random(seed)
    return [
        Fault(
            stop=generator.choice(STOPS),
            aim=generator.choice(AIMS),
            after=generator.choice(AFTERS),
            saves=generator.randrange(4),
            fraction=generator.random(),
        )
        for _ in range(count)
    ]
