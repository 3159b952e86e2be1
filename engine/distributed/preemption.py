"""Stopping on a signal, as the schedulers of clusters send it before they end a job."""

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


class PreemptedError(Exception):
    """A signal stopped the run; its state is saved."""


class _Woken(BaseException):
    """A signal ended a wait. The code that waits cannot catch it with `except Exception`."""


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
        self._waits = False

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

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Context of a wait that may never end: a signal ends it at once.

        Raises:
            PreemptedError: if a signal is received before or during the wait.
        """
        try:
            self._waits = True
            if self.received:
                raise _Woken
            yield
            self._waits = False
        except _Woken:
            raise PreemptedError(f"asked to stop by {self.received}") from None
        finally:
            self._waits = False

    def _receive(self, number: int, frame: Any) -> None:
        self.received = signal.Signals(number).name
        if self._waits:
            self._waits = False
            raise _Woken

    def until(self, items: Iterable) -> Iterator:
        """Yield items until a signal is received, also while an item is awaited."""
        iterator, end = iter(items), object()
        while True:
            try:
                with self.waiting():
                    item = next(iterator, end)
            except PreemptedError:
                return
            if item is end or self.received:
                return
            yield item
