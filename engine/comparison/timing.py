"""Fair timings: candidates take turns at the clock, and each one's memory is that of a process of its own."""

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
    """Time candidates in turns, so that a busy neighbour or a warm processor falls on all alike.

    A round begins with the candidate that the one before ended with.

    Args:
        candidates: what to time, by name.
        rounds: turns of each, after one that warms up and does not count.
        device: that the candidates run on.
        turn_s: a candidate that takes less repeats within its turn, up to 20 times.
        track: wraps the iteration over the rounds.

    Returns:
        Seconds of every counted run.
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
    """Measure the peak of memory that a call takes beyond what was there before it, in bytes.

    On a GPU that is memory of tensors. On a CPU, under Linux, it is all memory of a process forked for the purpose, so
    that nothing may have run on several threads in this one: a forked child lacks them and would wait for ever.

    Args:
        prepare: makes what the call needs, warms up what the memory shall not be charged with, and gives the call.
        device: that the call runs on.

    Returns:
        Bytes, or None where the system cannot tell.
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
    # Memory that was freed before, by the parent too, would serve the call unseen.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # peak = now
    before = _peak_kib()
    call()
    sender.send(1024 * (_peak_kib() - before))


def _peak_kib() -> int:
    """Most memory of this process since its peak was reset."""
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
