"""Interleaved timing of candidates, and peak memory in a separate process."""

import ctypes
import math
import multiprocessing
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch


def time_interleaved(
    candidates: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    device: torch.device,
    turn_s: float = 0.1,
    track: Callable[[Iterable], Iterable] = iter,
) -> dict[str, list[float]]:
    """Time candidates in interleaved rounds, so that other load on the machine affects all of them equally.

    Every second round runs in reverse order.

    Args:
        candidates: functions to time, by name.
        rounds: number of timed rounds, after one warm-up run.
        device: device that the candidates run on.
        turn_s: minimum seconds per turn; a faster candidate repeats up to 20 times.
        track: wraps the iteration over the rounds.

    Returns:
        Seconds of every timed run, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    repeats = {}
    for name, run in candidates.items():
        run()
        repeats[name] = min(20, math.ceil(turn_s / _time(run, device)))
    for number in track(range(rounds)):
        for name, run in reversed(candidates.items()) if number % 2 else candidates.items():
            seconds[name] += [_time(run, device) for _ in range(repeats[name])]
    return seconds


def peak_memory(prepare: Callable[[], Callable[[], Any]], device: torch.device) -> int | None:
    """Measure the peak memory of a call in bytes, without the memory that was allocated before it.

    On a GPU this is the memory of tensors. On a CPU under Linux it is the memory of a forked process.
    Note: fork on a CPU before anything has run on several threads here; the child has no threads and would block.

    Args:
        prepare: allocates inputs, warms up, and returns the call to measure.
        device: device that the call runs on.

    Returns:
        Bytes, or None if the system cannot measure it.
    """
    if device.type == "cuda":
        call = prepare()
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu" or platform.system() != "Linux":
        return None
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_measure_in_child, args=(prepare, sender))
    child.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        return None
    finally:
        child.join()


def _measure_in_child(prepare: Callable[[], Callable[[], Any]], sender: Connection) -> None:
    call = prepare()
    # return freed memory to the system, or else the call would reuse it without raising the peak
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # peak = now
    before = _peak_kib()
    call()
    sender.send(1024 * (_peak_kib() - before))


def _peak_kib() -> int:
    """Return the peak memory of this process since the last reset, in KiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def _time(run: Callable[[], Any], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
