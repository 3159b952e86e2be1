"""Worker processes of the data loaders: start, exit, and the error if one of them dies."""

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

# A killed process closes its pipes slightly before the system reports its exit code.
_GRACE_S = 0.2
_TORCH_HANDLER = "torch.utils.data._utils.signal_handling"

T = TypeVar("T")


class WorkerError(RuntimeError):
    """A worker process of a data loader died; the message contains the cause and a remedy."""


def loader_settings(workers: int, pin_memory: bool) -> dict[str, Any]:
    """Return the arguments shared by all loaders; the items of the data set are already batches."""
    if workers:
        _end_workers_at_exit()
    return {
        "num_workers": workers,
        "collate_fn": _identity,
        "pin_memory": pin_memory,
        "persistent_workers": workers > 0,
        "worker_init_fn": _ignore_stop_signals,
        # without it, every pass draws a number from the global random state, and a resumed run has one pass more
        "generator": torch.Generator(),
    }


def _identity(batch: Batch) -> Batch:
    return batch


def _ignore_stop_signals(worker: int) -> None:
    """Ignore the signals that a scheduler sends to every process of a job: training still needs batches."""
    for name in ("SIGTERM", "SIGUSR1", "SIGHUP"):
        if hasattr(signal, name):  # Windows has only SIGTERM
            signal.signal(getattr(signal, name), signal.SIG_IGN)


@functools.cache  # registered once and before PyTorch's cleanup of a pass, which runs first then
def _end_workers_at_exit() -> None:
    atexit.register(_end_workers)


def _end_workers() -> None:
    """Kill the daemonic child processes, which Python would end with SIGTERM, a signal that workers ignore.

    Python waits for them after its SIGTERM. It would wait forever if a traceback still references a loader.
    """
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler would report these exits as errors
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def read_batches(loader: DataLoader) -> Iterator[Batch]:
    """Iterate over a loader from its sampler's current position.

    The death of a worker process raises an error only while this function waits for a batch. Other errors pass
    unchanged.

    Raises:
        WorkerError: If a worker process died.
    """
    iterator = _call_checked(loader, lambda: _start(loader))
    while (batch := _call_checked(loader, lambda: next(iterator, None))) is not None:
        yield batch


def _start(loader: DataLoader) -> Iterator[Batch]:
    """Start a pass without PyTorch's SIGCHLD handler.

    When a worker dies, the handler raises at any point of the main thread, also in the middle of an update. Without
    it, PyTorch still detects dead workers while it waits for a batch.
    """
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        return iter(loader)  # PyTorch sets no handler here
    handler = signal.getsignal(signal.SIGCHLD)
    if getattr(handler, "__module__", None) == _TORCH_HANDLER:  # left by another loader
        handler = signal.SIG_DFL
    try:
        return iter(loader)
    finally:
        if handler is not None and signal.getsignal(signal.SIGCHLD) is not handler:  # None: not set by Python
            signal.signal(signal.SIGCHLD, handler)


def _call_checked(loader: DataLoader, action: Callable[[], T]) -> T:
    """Run an action that needs the loader's workers; raise `WorkerError` if one of them is dead."""
    dead = _dead_workers(loader, wait_s=0)  # first, because the rest of a dead worker's message never arrives
    if not dead:
        try:
            return action()
        except (RuntimeError, OSError, EOFError):
            dead = _dead_workers(loader, wait_s=_GRACE_S)
            if not dead:
                raise
    loader._iterator = None  # the next pass starts new workers; PyTorch has no public attribute for persistent workers
    raise WorkerError(
        f"{' and '.join(dead)}. The usual cause is too little memory: reduce data.num_workers (currently "
        f"{loader.num_workers}), or provide more memory or shared memory (/dev/shm). --resume auto continues training "
        "exactly from its last checkpoint"
    )


def _dead_workers(loader: DataLoader, wait_s: float) -> list[str]:
    """Describe the exit of each dead worker, after waiting up to `wait_s` for each live one."""
    found = []
    for worker in getattr(loader._iterator, "_workers", ()):
        if wait_s:
            worker.join(wait_s)
        if (code := worker.exitcode) is not None:
            killed = f"was killed by signal {-code} ({signal.strsignal(-code)})" if code < 0 else ""
            found.append(f"worker process {worker.pid} of the data loader {killed or f'ended with exit code {code}'}")
    return found
