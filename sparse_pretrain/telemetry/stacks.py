"""Where a process is: SIGQUIT writes the stacks of all its threads into its log, and it goes on."""

import faulthandler
import signal

STANDARD_ERROR = 2


def show_stacks_on_request() -> None:
    """Answer SIGQUIT with the stacks of all threads on stderr, which is a rank's log once its output is redirected.

    Written by the C level of Python: it also works while the process hangs in a library's call. Call it as
    early as possible, for a process that does not know SIGQUIT dies of it.
    """
    faulthandler.register(signal.SIGQUIT, file=STANDARD_ERROR, all_threads=True, chain=False)
