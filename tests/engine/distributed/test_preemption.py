"""Signals are recorded, handled where that is safe, and restored."""

import os
import signal
import time

import pytest

from engine.distributed.preemption import PreemptedError, StopRequest


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signal here")
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


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no such signal here")
def test_a_closed_terminal_does_not_stop_what_nohup_started():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop = StopRequest()
        with stop.listen():
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.received is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


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
