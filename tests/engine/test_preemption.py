"""Signals are noted, acted on where that is safe, and given back."""

import os
import signal

import pytest

from engine.preemption import PreemptedError, StopRequest


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signal here")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_is_noted_and_stops_where_asked(name):
    number = getattr(signal, name)
    stop, before, seen = StopRequest(), signal.getsignal(number), []

    def iterate():
        for item in stop.guard(range(5)):
            seen.append(item)
            if item == 2:
                os.kill(os.getpid(), number)

    with stop.listen():
        stop.check()
        with pytest.raises(PreemptedError, match=f"asked to stop by {name}"):
            iterate()
        assert seen == [0, 1, 2]
        with pytest.raises(PreemptedError):
            stop.check()
    assert signal.getsignal(number) == before
