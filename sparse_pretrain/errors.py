"""The two ways a command ends badly: the user's mistake, and ours."""


class FailedError(RuntimeError):
    """Something went wrong that its message says all about: shown as one line, exit code 1, no traceback."""


class UserError(Exception):
    """A mistake the user can mend: shown as one line, exit code 2, no traceback.

    The message names the file, the key, the value, and what would be right, in that order:
    ``recipe.yaml: pruning.target_sparsity = 90: must be at least 0 and below 1. Did you mean 0.90?``
    """
