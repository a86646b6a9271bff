"""Tiny models are slower on two threads than on one, much slower when the cores are busy."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# A machine that is busy, or loading a library for the first time, is slow but not wrong.
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
