"""The limit on open files, and the errors of a system that runs out of something."""

import errno
import os

import pytest

from data import open_files
from data.open_files import exhausted, open_file_limit, raise_open_file_limit

resource = pytest.importorskip("resource")
INFINITY = resource.RLIM_INFINITY


@pytest.fixture
def limits(monkeypatch):
    """`limits(soft, hard, highest)`: limits of a system that accepts no soft limit above `highest`."""

    def make(soft, hard, highest):
        now = [soft, hard]

        def set_limit(kind, wanted):
            if wanted[0] == INFINITY or wanted[0] > highest:
                raise ValueError("not allowed to raise maximum limit")
            now[:] = wanted

        monkeypatch.setattr(resource, "getrlimit", lambda kind: tuple(now))
        monkeypatch.setattr(resource, "setrlimit", set_limit)
        return now

    return make


@pytest.mark.parametrize(
    ("soft", "hard", "highest", "expected"),
    [
        (256, 20000, 20000, 20000),
        (256, 256, 256, 256),
        (256, INFINITY, 10240, 10240),  # macOS
        (20480, INFINITY, 10240, 20480),
        (256, 512, 100, 256),
        (INFINITY, INFINITY, 10240, INFINITY),
    ],
)
def test_the_soft_limit_is_raised_as_far_as_the_system_allows(limits, soft, hard, highest, expected):
    now = limits(soft, hard, highest)
    raise_open_file_limit()
    assert now == [expected, hard]
    assert open_file_limit() == (None if expected == INFINITY else expected)


def test_a_system_without_limits(monkeypatch):
    monkeypatch.setattr(open_files, "resource", None)
    raise_open_file_limit()
    assert open_file_limit() is None


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), errno.EMFILE),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a.txt"), errno.ENOSPC),
        (
            RuntimeError("unable to open shared memory object </t> in read-write mode: Too many open files (24)"),
            24,
        ),
        (RuntimeError("unable to write to file </torch_1>: No space left on device (28)"), errno.ENOSPC),
        (RuntimeError("unable to mmap 120 bytes from file </torch_1>: Cannot allocate memory (12)"), errno.ENOMEM),
        (RuntimeError("Too many open files. Communication with the workers is no longer possible."), errno.EMFILE),
        (RuntimeError("received 0 items of ancdata"), errno.EMFILE),
        (RuntimeError("a bug in line (25)"), None),
        (FileNotFoundError(errno.ENOENT, "No such file", "a (24)"), None),
        (EOFError(), None),
    ],
)
def test_what_a_system_ran_out_of(error, number):
    assert exhausted(error) == number
