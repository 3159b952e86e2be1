"""Signals are recorded, handled where that is safe, and restored."""

import os
import signal
import time
from collections.abc import Iterator

import pytest

from engine.distributed.preemption import PreemptedError, StopRequest


@pytest.fixture
def hangup() -> Iterator[None]:
    """Restore SIGHUP, which nohup makes the tests ignore, and what was set before."""
    if not hasattr(signal, "SIGHUP"):
        pytest.skip("no such signal here")
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangup")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGHUP"])
def test_a_signal_is_noted_and_stops_where_asked(name):
    number = getattr(signal, name)
    stop, before, seen = StopRequest(), signal.getsignal(number), []

    with stop.listen():
        for item in stop.until(range(5)):
            seen.append(item)
            if item == 2:
                os.kill(os.getpid(), number)
        assert (seen, stop.received) == ([0, 1, 2], name)
        assert not [*stop.until(range(5))]
    assert signal.getsignal(number) == before


@pytest.mark.usefixtures("hangup")
def test_a_closed_terminal_does_not_stop_what_nohup_started():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = StopRequest()
    with stop.listen():
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.received is None
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def wait_forever() -> None:
    """Wait for a batch that never comes, in code that takes every error for its own."""
    os.kill(os.getpid(), signal.SIGTERM)
    try:
        time.sleep(600)
    except Exception:
        pytest.fail("the code that waits must not handle the signal")


def test_a_signal_ends_a_wait_at_once():
    stop = StopRequest()
    with stop.listen():
        with pytest.raises(PreemptedError, match="asked to stop by SIGTERM"), stop.waiting():
            wait_forever()
        with pytest.raises(PreemptedError, match="asked to stop by SIGTERM"), stop.waiting():
            pytest.fail("no wait starts after a signal")
        os.kill(os.getpid(), signal.SIGTERM)  # outside a wait


def test_a_signal_ends_the_wait_for_an_item():
    def items():
        yield 1
        wait_forever()

    stop = StopRequest()
    with stop.listen():
        assert [*stop.until(items())] == [1]
