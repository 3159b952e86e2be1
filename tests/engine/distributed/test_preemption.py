"""Signals are recorded, handled where that is safe, and restored."""

import os
import signal

import pytest

from engine.distributed.preemption import StopRequest


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
