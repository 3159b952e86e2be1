"""Stopping on request, as schedulers of shared machines ask for it by a signal."""

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


class PreemptedError(Exception):
    """The run was asked to stop, and what it learned is saved."""


class StopRequest:
    """Whether one of the signals came while it listened.

    SIGTERM is what SLURM, Kubernetes and systemd send before they kill; SIGUSR1 is the usual choice for an earlier
    warning, as in `sbatch --signal=USR1@120`.
    """

    SIGNALS = ("SIGTERM", "SIGUSR1")

    def __init__(self) -> None:
        self.received: str | None = None

    @contextmanager
    def listen(self) -> Iterator[None]:
        """Take the signals within this context; only the main thread of a program may."""
        numbers = [getattr(signal, name) for name in self.SIGNALS if hasattr(signal, name)]  # Windows has no SIGUSR1
        before = {number: signal.signal(number, self._note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        self.received = signal.Signals(number).name

    def until(self, items: Iterable) -> Iterator:
        """Iterate until a signal comes."""
        for item in items:
            if self.received:
                return
            yield item
