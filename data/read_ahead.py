"""`read_ahead`: call a function for each item in threads, a few items ahead."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_MAX_THREADS = 8


def read_ahead(read: Callable[[T], R], items: Iterable[T], threads: int | None = None) -> Iterator[R]:
    """Yield `read(item)` in order, while threads read the next few items.

    Args:
        read: Function that mostly waits for files or decodes images, which other threads do not wait for.
        items: Arguments of the function.
        threads: Number of threads; None: the number of CPU cores, up to 8.
    """
    threads = threads or min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4, _MAX_THREADS)
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque = deque()
        for item in items:
            waiting.append(pool.submit(read, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
