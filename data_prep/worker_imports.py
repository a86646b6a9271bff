"""What every worker process needs, imported once for all of them; see `parallel`."""

import data_prep.engine
import data_prep.row_steps
import data_prep.sources.open
import data_prep.text_steps  # noqa: F401 - imported for its effect
from data_prep.sentences import splitter

splitter()
