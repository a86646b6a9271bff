"""Signals ask for a stop; they do nothing else. Ranks agree on it at the next step boundary."""

import signal
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
# What a stopped run exits with (EX_TEMPFAIL of sysexits.h): saved, not finished, start me again.
STOPPED_EXIT_CODE = 75


class StopFlag:
    """True once any of `STOP_SIGNALS` has arrived."""

    def __init__(self) -> None:
        self.raised = False

    def install(self) -> None:
        """Listen from now on; a second Ctrl-C interrupts at once."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.raised:
            raise KeyboardInterrupt
        self.raised = True
