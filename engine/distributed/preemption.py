"""Stopping on a signal, as the schedulers of clusters send it before they end a job."""

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


class PreemptedError(Exception):
    """A signal stopped the run; its state is saved."""


class StopRequest:
    """Records a signal to stop.

    SLURM, Kubernetes and systemd send SIGTERM before they kill a process. SIGUSR1 is usual for an earlier warning, for
    example `sbatch --signal=USR1@120`. A terminal that is closed sends SIGHUP, which `nohup` makes a process ignore.

    Attributes:
        received: name of the signal that was received, or None.
    """

    SIGNALS = ("SIGTERM", "SIGUSR1", "SIGHUP")

    def __init__(self) -> None:
        self.received: str | None = None

    @contextmanager
    def listen(self) -> Iterator[None]:
        """Context in which the signals are recorded; only for the main thread."""
        # Windows has only SIGTERM
        numbers = [getattr(signal, name) for name in self.SIGNALS if hasattr(signal, name)]
        # SIGTERM is heeded even if the parent process ignores it
        heeded = [n for n in numbers if n == signal.SIGTERM or signal.getsignal(n) != signal.SIG_IGN]
        before = {number: signal.signal(number, self._receive) for number in heeded}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: Any) -> None:
        self.received = signal.Signals(number).name

    def until(self, items: Iterable) -> Iterator:
        """Yield items until a signal is received."""
        for item in items:
            if self.received:
                return
            yield item
