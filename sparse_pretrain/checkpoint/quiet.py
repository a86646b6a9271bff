"""Keep libraries from talking over our own output."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import datasets
import transformers.utils.logging as transformers_logging


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence the progress bars, warnings and reports of transformers, datasets and what they import.

    Everything is as before afterwards. Errors still show.
    """
    verbosity = transformers_logging.get_verbosity()
    had_bars = transformers_logging.is_progress_bar_enabled()
    had_dataset_bars = datasets.utils.are_progress_bars_disabled() is False
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
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
        if had_dataset_bars:
            datasets.enable_progress_bars()
