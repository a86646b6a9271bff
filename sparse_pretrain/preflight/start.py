"""Before a training's first step: whether its ranks fit together and all of them find what they need."""

import os
import platform
import sys
import threading
from collections.abc import Mapping, Sequence

from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.errors import UserError
from sparse_pretrain.preflight.check import Wanted, check_ranks
from sparse_pretrain.preflight.findings import Finding, sorted_findings
from sparse_pretrain.preflight.paths import recipe_paths
from sparse_pretrain.training.world import World, join_world, rank_from_environment

SWITCH = "SPARSE_PRETRAIN_PREFLIGHT"
OFF = ("0", "off", "no", "false")
# For the others to come and hear of a mistake; well ranks need seconds to get so far.
MEET_SECONDS = 60.0


def preflight(recipe: TrainRecipe, world: World, mistake: str | None = None) -> list[str]:
    """Compare the ranks that are about to train (collective).

    One rank alone has nothing to compare with. `SPARSE_PRETRAIN_PREFLIGHT=off`, where rank 0 runs, leaves out all
    but the ranks' own mistakes.

    Args:
        recipe: what they train.
        world: all of them.
        mistake: what this rank has found wrong by itself.

    Returns:
        Warnings, a line each.

    Raises:
        UserError: what would end the run or spoil it, a line each: the same on every rank.
    """
    if world.size == 1:
        return []
    ranks = world.gather((platform.node(), mistake))
    first = ranks[0][1]
    if first is not None and all(said == first for _, said in ranks):
        raise UserError(first)
    findings: Sequence[Finding] = []
    if any(said is None for _, said in ranks) and world.broadcast(is_wanted()):
        # What rank 0 cannot read it need not, or it has said so.
        paths = world.broadcast([path for path in recipe_paths(recipe) if os.access(path, os.R_OK)])
        findings = check_ranks(world, Wanted(recipe.output, paths, gpus_in_use=True))[1]
    findings = sorted_findings([*own_mistakes(ranks, findings), *findings])
    lines = [finding.line() for finding in findings]
    if any(finding.level == "wrong" for finding in findings):
        raise UserError("\n".join(lines))
    return lines


def is_wanted(environment: Mapping[str, str] = os.environ) -> bool:
    """Say whether the user has left the comparison switched on."""
    return environment.get(SWITCH, "").strip().lower() not in OFF


def own_mistakes(ranks: Sequence[tuple[str, str | None]], findings: Sequence[Finding]) -> list[Finding]:
    """Return what single ranks have found wrong by themselves, unless a finding explains it already.

    Args:
        ranks: machine and mistake of each.
        findings: of all ranks together.
    """
    explained = {finding.rank for finding in findings if finding.level == "wrong"}
    return [
        Finding(
            "start", "wrong", said, f"other ranks do not say so: what is different on {host}?", rank, host
        )
        for rank, (host, said) in enumerate(ranks)
        if said is not None and rank not in explained
    ]


def tell_others(recipe: TrainRecipe, mistake: UserError) -> int:
    """End this rank for a mistake, together with the others: alone, it would leave them waiting for it.

    Returns:
        Exit code 2, where rank 0 says what is wrong.

    Raises:
        UserError: on rank 0 what is wrong with all ranks; this rank's own mistake when the others don't come.
    """
    rank, size, _ = rank_from_environment()
    if size == 1:
        raise mistake
    alone = threading.Timer(MEET_SECONDS, end_alone, [str(mistake)])
    alone.daemon = True
    alone.start()
    try:
        preflight(recipe, join_world(), str(mistake))
    except UserError as everyone:
        if rank == 0:
            raise everyone from None
        return 2
    except Exception:
        # No rendezvous: this rank's mistake is what matters.
        raise mistake from None
    finally:
        alone.cancel()
    raise mistake


def end_alone(mistake: str) -> None:
    """End this process, which hangs in the rendezvous, with what it has to say."""
    print(mistake, file=sys.stderr, flush=True)
    os._exit(2)
