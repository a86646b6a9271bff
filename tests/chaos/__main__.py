"""`python -m tests.chaos --faults 100 --seed 0`: ends with `N faults, L lost, C corrupt`."""

import argparse
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.campaign import Campaign
from tests.chaos.disk import have_own_mounts, with_own_mounts
from tests.chaos.plan import FAST, draw_faults

FULL_STEPS, FAST_STEPS = 240, 100


def main() -> int:
    """Run the campaign that the command line asks for; return 1 when anything went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--faults", type=int, default=100, help="how many")
    parser.add_argument("--fast", action="store_true", help="the few of `make test` instead")
    parser.add_argument("--seed", type=int, default=0, help="which ones")
    parser.add_argument("--nproc", type=int, default=2, help="ranks")
    parser.add_argument("--workdir", type=Path, help="where the runs lie (default: a temporary folder)")
    settings = parser.parse_args()
    # As Ctrl-C does it: everything that was started is ended.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if not have_own_mounts():
        print("no small disk can be mounted here: a limit on the size of files stands in for a full one")
    if settings.workdir is not None and settings.workdir.exists():
        parser.error(f"--workdir {settings.workdir}: exists; name a folder that can be made")
    workdir: Path = settings.workdir or Path(tempfile.mkdtemp(prefix="chaos-"))
    planned = list(FAST) if settings.fast else draw_faults(settings.faults, settings.seed)
    steps = FAST_STEPS if settings.fast else FULL_STEPS
    began = time.monotonic()
    campaign = Campaign(
        workdir.resolve(), settings.nproc, steps, settings.seed, lambda text: print(text, flush=True)
    )
    tally = campaign.play(planned)
    for kind, problems in (("lost", tally.lost), ("corrupt", tally.corrupt), ("untidy", tally.untidy)):
        for problem in problems:
            print(f"{kind}: {problem}")
    print(f"{campaign.inside_saves} struck inside a save; {(time.monotonic() - began) / 60:.1f} minutes")
    if tally.clean and settings.workdir is None:
        shutil.rmtree(workdir)
    elif not tally.clean:
        print(f"the runs to look at are in {workdir}")
    print(f"{len(planned)} faults, {len(tally.lost)} lost, {len(tally.corrupt)} corrupt")
    return 0 if tally.clean else 1


if __name__ == "__main__":
    with_own_mounts([sys.executable, "-m", "tests.chaos", *sys.argv[1:]])
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        # Whatever was started has been ended on the way here.
        sys.exit("interrupted")
