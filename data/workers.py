"""Worker processes of the data loaders: start, exit, and the error if one of them dies."""

import atexit
import errno
import functools
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.queues import Queue
from typing import Any, NoReturn, TypeVar

import torch
from torch.utils.data import DataLoader

from .open_files import EXHAUSTED, exhausted, open_file_limit, raise_open_file_limit
from .steps import Batch

# A killed process closes its pipes slightly before the system reports its exit code.
_GRACE_S = 0.2
_TORCH_HANDLER = "torch.utils.data._utils.signal_handling"

T = TypeVar("T")


class WorkerError(RuntimeError):
    """A batch cannot arrive, usually because a worker process of a loader died; the message has cause and remedy."""


def loader_settings(workers: int, pin_memory: bool) -> dict[str, Any]:
    """Return the arguments shared by all loaders; the items of the data set are already batches."""
    if workers:
        _end_workers_at_exit()
        raise_open_file_limit()
    return {
        "num_workers": workers,
        "collate_fn": _identity,
        "pin_memory": pin_memory,
        "persistent_workers": workers > 0,
        "worker_init_fn": _prepare_worker,
        # without it, every pass draws a number from the global random state, and a resumed run has one pass more
        "generator": torch.Generator(),
    }


def _identity(batch: Batch) -> Batch:
    return batch


def _prepare_worker(worker: int) -> None:
    """Ignore signals that schedulers and terminals send to every process of a job, and end if a batch is lost."""
    for name in ("SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT"):
        if hasattr(signal, name):  # Windows has only SIGTERM and SIGINT
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    # Threads send the batches. Python prints the errors of these threads and drops the batch, for which the trainer
    # would wait forever.
    Queue._on_queue_feeder_error = staticmethod(lambda error, item: _end_worker(error))
    sys.excepthook = lambda kind, error, trace: _end_worker(error)
    threading.excepthook = lambda thrown: _end_worker(thrown.exc_value)


def _end_worker(error: BaseException) -> NoReturn:
    """End this worker process because of an error; the exit code is the error number if the trainer can explain it."""
    number = exhausted(error)
    # without its trainer, a worker cannot send anything
    if number is None and not isinstance(error, ConnectionError | EOFError):
        traceback.print_exception(error)
    os._exit(number or 1)  # noqa: TID251 - a thread cannot end its process in another way


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
        with _without_interrupts():
            return iter(loader)  # PyTorch sets no handler here
    handler = signal.getsignal(signal.SIGCHLD)
    if getattr(handler, "__module__", None) == _TORCH_HANDLER:  # left by another loader
        handler = signal.SIG_DFL
    try:
        with _without_interrupts():
            return iter(loader)
    finally:
        if handler is not None and signal.getsignal(signal.SIGCHLD) is not handler:  # None: not set by Python
            signal.signal(signal.SIGCHLD, handler)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Context that delays Ctrl-C in this thread, and for good in the processes that it starts.

    A terminal sends Ctrl-C to all processes of a job. Each worker would print a traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _call_checked(loader: DataLoader, action: Callable[[], T]) -> T:
    """Run an action that needs the loader's workers; raise `WorkerError` if one of them is dead."""
    dead = _dead_workers(loader, wait_s=0)  # first, because the rest of a dead worker's message never arrives
    number = None
    if not dead:
        try:
            return action()
        except (RuntimeError, OSError, EOFError) as error:
            dead = _dead_workers(loader, wait_s=_GRACE_S)
            number = exhausted(error) if loader.num_workers else None
            if not dead and number is None:
                raise
    loader._iterator = None  # the next pass starts new workers; PyTorch has no public attribute for persistent workers
    raise WorkerError(_describe_failure(loader, dead, number)) from None


def _describe_failure(loader: DataLoader, dead: dict[str, int], number: int | None) -> str:
    """Describe why no batch can arrive: dead workers by their exit codes, or what this process ran out of."""
    what = " and ".join(dead) or f"the data loader cannot receive a batch: {os.strerror(number)}"
    if {number, *dead.values()} & {errno.EMFILE, errno.ENFILE}:
        cause = (
            f"Batches need more open files than the limit ({open_file_limit()}): raise it with ulimit -n, or reduce "
            f"data.num_workers (currently {loader.num_workers}) or train.batch_size"
        )
    else:
        cause = (
            f"The usual cause is too little memory: reduce data.num_workers (currently {loader.num_workers}), or "
            "provide more memory or shared memory (/dev/shm)"
        )
    return f"{what}. {cause}. --resume auto continues training exactly from its last checkpoint"


def _dead_workers(loader: DataLoader, wait_s: float) -> dict[str, int]:
    """Return the exit code of each dead worker by its description, after waiting up to `wait_s` for each live one."""
    found = {}
    for worker in getattr(loader._iterator, "_workers", ()):
        if wait_s:
            worker.join(wait_s)
        if (code := worker.exitcode) is not None:
            if code < 0:
                end = f"was killed by signal {-code} ({signal.strsignal(-code)})"
            elif code in EXHAUSTED:
                end = f"could not send a batch ({os.strerror(code)})"
            else:
                end = f"ended with exit code {code}"
            found[f"worker process {worker.pid} of the data loader {end}"] = code
    return found
