"""Signals are recorded, handled where that is safe, and restored."""

import os
import signal

import pytest

from engine.distributed.preemption import StopRequest


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signal here")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
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
