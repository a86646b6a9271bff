"""No process of ours outlives the one that started it (Linux)."""

import ctypes
import os
import signal
from collections.abc import Callable

PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> Callable[[], None]:
    """Return what a child calls first: the kernel kills it when its parent dies, however that dies.

    A parent that is killed with SIGKILL can run no clean-up. The request survives exec but is not inherited by the
    child's own children.

    Args:
        parent: process id of the parent, which may have died before the child calls.
    """
    # Loaded here: between fork and exec there is little that a process may do.
    libc = ctypes.CDLL(None)

    def ask_the_kernel() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return ask_the_kernel
