"""What every rank of a test imports; loaded once, in the process that ranks are forked from.

Importing takes five seconds a rank, forking none. Nothing here starts a thread or draws a random number.
"""

import sparse_pretrain.finetune.campaign
import sparse_pretrain.training.build
import sparse_pretrain.training.restore
import sparse_pretrain.training.saver  # noqa: F401
