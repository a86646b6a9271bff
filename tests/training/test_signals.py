"""Signals ask for a stop: once, urgently, and in the end by force."""

import signal
import time
from collections.abc import Iterator

import pytest

from sparse_pretrain.training.signals import AGAIN_SECONDS, STOP_SIGNALS, StopFlag


@pytest.fixture
def flag() -> Iterator[StopFlag]:
    """A flag that listens, and the handlers put back afterwards."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    flag = StopFlag()
    flag.install()
    yield flag
    for number, handler in before.items():
        signal.signal(number, handler)


def later(flag: StopFlag) -> None:
    """Let more than the time go by in which a signal may be the same request twice."""
    flag.latest -= AGAIN_SECONDS + 0.1


def test_nothing_is_asked_at_first(flag: StopFlag) -> None:
    assert (flag.raised, flag.again, flag.reason) == (False, False, "")


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_the_first_signal_asks_for_a_stop_and_says_which_it_was(
    flag: StopFlag, number: signal.Signals
) -> None:
    before = time.monotonic()
    signal.raise_signal(number)
    assert (flag.raised, flag.again, flag.reason) == (True, False, number.name)
    assert before <= flag.since <= time.monotonic()


def test_what_is_passed_on_twice_within_a_second_was_asked_once(flag: StopFlag) -> None:
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGINT):
        signal.raise_signal(number)
    assert (flag.raised, flag.again, flag.reason) == (True, False, "SIGTERM")


@pytest.mark.parametrize("second", STOP_SIGNALS)
def test_a_second_signal_later_asks_for_haste_and_the_first_reason_stays(
    flag: StopFlag, second: signal.Signals
) -> None:
    signal.raise_signal(signal.SIGUSR1)
    later(flag)
    since = flag.since
    signal.raise_signal(second)
    assert (flag.raised, flag.again, flag.reason, flag.since) == (True, True, "SIGUSR1", since)


def test_only_a_third_ctrl_c_interrupts(flag: StopFlag) -> None:
    signal.raise_signal(signal.SIGINT)
    later(flag)
    signal.raise_signal(signal.SIGINT)
    later(flag)
    for number in STOP_SIGNALS[:3]:
        signal.raise_signal(number)
    assert flag.again
    later(flag)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_run_may_ask_itself_and_a_signal_after_that_is_the_second_request(flag: StopFlag) -> None:
    flag.note("the walltime is nearly up")
    flag.note("another reason")
    assert (flag.raised, flag.again, flag.reason) == (True, False, "the walltime is nearly up")
    signal.raise_signal(signal.SIGTERM)
    assert not flag.again
    later(flag)
    signal.raise_signal(signal.SIGTERM)
    assert flag.again
    assert flag.reason == "the walltime is nearly up"
