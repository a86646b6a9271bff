"""Keep libraries from talking over our own output."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import transformers.utils.logging as transformers_logging


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence the progress bars, warnings and reports of transformers, datasets and what they import.

    Everything is as before afterwards. Errors still show.
    """
    # Who uses it has imported it; to others it would cost a second.
    datasets = sys.modules.get("datasets")
    verbosity = transformers_logging.get_verbosity()
    had_bars = transformers_logging.is_progress_bar_enabled()
    had_dataset_bars = datasets is not None and not datasets.are_progress_bars_disabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if datasets is not None:
        datasets.disable_progress_bars()
    # The Trainer imports DeepSpeed, which greets with warnings from a logger it sets up on import.
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        transformers_logging.set_verbosity(verbosity)
        if had_bars:
            transformers_logging.enable_progress_bar()
        if had_dataset_bars and datasets is not None:
            datasets.enable_progress_bars()
