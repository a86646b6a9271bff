"""Signals that the launcher passes on: handlers only note them, the watching loop acts."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# What the launcher receives -> what each rank gets. A closed terminal (SIGHUP) must not cost the run its
# last checkpoint, so ranks see the signal that they save on.
FORWARDED = {
    signal.SIGINT: signal.SIGINT,
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGUSR1: signal.SIGUSR1,
    signal.SIGUSR2: signal.SIGUSR2,
    signal.SIGHUP: signal.SIGTERM,
}
# Those that ask a run to end.
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Inbox:
    """Signals that arrived: handlers only note them, the watching loop acts."""

    def __init__(self) -> None:
        self.arrived: list[signal.Signals] = []

    def note(self, number: int, _frame: FrameType | None) -> None:
        """Note one signal (a signal handler)."""
        self.arrived.append(signal.Signals(number))

    def take(self) -> list[signal.Signals]:
        """Return what arrived since the last call."""
        taken, self.arrived = self.arrived, []
        return taken


@contextmanager
def noted_signals() -> Iterator[Inbox]:
    """Note signals instead of dying of them, and put the old handlers back at the end."""
    inbox = Inbox()
    previous = {}
    for number in FORWARDED:
        # nohup ignores SIGHUP: then it stays ignored.
        if number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
            continue
        previous[number] = signal.signal(number, inbox.note)
    try:
        yield inbox
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
