"""What all tests share: time limits, threads, and an order in which workers end at about the same time."""

import os
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# A machine that is busy, or loading a library for the first time, is slow but not wrong.
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, as workers take whole files: none is left to one worker at the end.

    Before them, tests that raise real signals in their own process: libraries that other tests load have handlers too.
    """
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: (item.path.name != "test_signals.py", -slow[item.path]))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models are slower on two threads than on one, much slower when the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def one_environment() -> Iterator[None]:
    """Put `os.environ` itself back: `Dataset.map` in several processes leaves a copy in its place.

    Libraries that kept the first one (rich does, for COLUMNS) would no longer see what a later test sets.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", os.environ)
        yield
