"""Signals ask for a stop; they do nothing else. Ranks agree on it at the next step boundary."""

import signal
import time
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
# What a stopped run exits with (EX_TEMPFAIL of sysexits.h): saved, not finished, start me again.
STOPPED_EXIT_CODE = 75
# A second signal sooner than this is the same request twice: a scheduler, a launcher and a process group may
# all pass on what was asked once.
AGAIN_SECONDS = 1.0


class StopFlag:
    """Whether, why, and how urgently this process was asked to stop.

    Attributes:
        raised: it was.
        again: it was asked once more, a second later or more: then only what is needed is done.
        reason: the signal's name, or why the run itself wants to stop.
        since: time.monotonic() of the first request.
        latest: time.monotonic() of the last one that counted.
    """

    def __init__(self) -> None:
        self.raised = False
        self.again = False
        self.reason = ""
        self.since = 0.0
        self.latest = 0.0

    def install(self) -> None:
        """Listen from now on. The first signal asks for a stop, the second for haste; a third Ctrl-C interrupts."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)

    def note(self, reason: str) -> None:
        """Ask for a stop."""
        if not self.raised:
            self.raised, self.reason, self.since = True, reason, time.monotonic()
            self.latest = self.since

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.raised and now - self.latest < AGAIN_SECONDS:
            return
        self.latest = now
        if number == signal.SIGINT and self.again:
            raise KeyboardInterrupt
        self.again = self.raised
        self.note(signal.Signals(number).name)
