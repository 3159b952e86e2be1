"""The processes that read images: how they start, and the error when one of them dies."""

import atexit
import functools
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader

from .steps import Batch

# A process that was killed closes its pipes a moment before the system tells that it is dead.
_GRACE_S = 0.2
_TORCH_HANDLER = "torch.utils.data._utils.signal_handling"

T = TypeVar("T")


class WorkerError(RuntimeError):
    """A worker process of a loader died; the message says how, and what to do."""


def loader_settings(workers: int, pin_memory: bool) -> dict[str, Any]:
    """Arguments that all loaders have in common; the fetched items are batches already."""
    if workers:
        _end_workers_at_exit()
    return {
        "num_workers": workers,
        "collate_fn": _identity,
        "pin_memory": pin_memory,
        "persistent_workers": workers > 0,
        "worker_init_fn": _ignore_stop_signals,
        # else every pass draws a number from the global random state, and a resumed run would make one pass more
        "generator": torch.Generator(),
    }


def _identity(batch: Batch) -> Batch:
    return batch


def _ignore_stop_signals(worker: int) -> None:
    """Ignore the signals by which a scheduler asks every process of a job to stop: training still needs its batches."""
    for name in ("SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):  # Windows has no SIGUSR1
            signal.signal(getattr(signal, name), signal.SIG_IGN)


@functools.cache  # once, before torch's own clean-up of a pass, which comes first then
def _end_workers_at_exit() -> None:
    atexit.register(_end_workers)


def _end_workers() -> None:
    """End what Python ends when a program does, its daemonic processes, by a signal that loaders' workers obey.

    Python sends a SIGTERM and waits, which would be for ever wherever a traceback still holds a loader.
    """
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would take these deaths for accidents
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def read_batches(loader: DataLoader) -> Iterator[Batch]:
    """Iterate over a loader from where its sampler stands.

    The death of a worker process is met while the next batch is waited for and nowhere else. Errors of other kinds
    pass unchanged.

    Raises:
        WorkerError: if a worker process died.
    """
    iterator = _call_checked(loader, lambda: _start(loader))
    while (batch := _call_checked(loader, lambda: next(iterator, None))) is not None:
        yield batch


def _start(loader: DataLoader) -> Iterator[Batch]:
    """Start a pass without torch's SIGCHLD handler.

    It raises in the main thread wherever that is when a worker dies: in the middle of an update, which is then half
    done. Without it torch still looks for dead workers while it waits for a batch.
    """
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        return iter(loader)  # nowhere else does torch set it
    handler = signal.getsignal(signal.SIGCHLD)
    if getattr(handler, "__module__", None) == _TORCH_HANDLER:  # left by another loader
        handler = signal.SIG_DFL
    try:
        return iter(loader)
    finally:
        if handler is not None and signal.getsignal(signal.SIGCHLD) is not handler:  # None: not Python's to set
            signal.signal(signal.SIGCHLD, handler)


def _call_checked(loader: DataLoader, action: Callable[[], T]) -> T:
    """Do what needs the loader's workers; raise `WorkerError` if one of them is dead."""
    dead = _dead_workers(loader, wait_s=0)  # first, since the rest of a message that it was sending never comes
    if not dead:
        try:
            return action()
        except (RuntimeError, OSError, EOFError):
            dead = _dead_workers(loader, wait_s=_GRACE_S)
            if not dead:
                raise
    loader._iterator = None  # the next pass starts new workers; torch has no public name for its lasting ones
    raise WorkerError(
        f"{' and '.join(dead)}. The usual cause is too little memory: set data.num_workers lower (it is "
        f"{loader.num_workers}), or allow more memory or shared memory (/dev/shm). A training continues exactly from "
        "its last checkpoint with --resume auto"
    )


def _dead_workers(loader: DataLoader, wait_s: float) -> list[str]:
    """Say of each dead worker how it ended, after up to `wait_s` for each that is alive."""
    found = []
    for worker in getattr(loader._iterator, "_workers", ()):
        if wait_s:
            worker.join(wait_s)
        if (code := worker.exitcode) is not None:
            killed = f"was killed by signal {-code} ({signal.strsignal(-code)})" if code < 0 else ""
            found.append(f"worker process {worker.pid} of the data loader {killed or f'ended with exit code {code}'}")
    return found
