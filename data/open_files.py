"""The limit on open files, which loader workers need: each tensor of a batch is an open file of two processes."""

import errno
import os

try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None

# what a system can run out of, by the numbers of its errors
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.ENOMEM)
# macOS accepts no more than this, although its hard limit is higher
_OPEN_MAX = 10_240


def raise_open_file_limit() -> None:
    """Raise the soft limit on open files of this process and its children to the hard limit, if the system allows."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (hard, _OPEN_MAX):
        if soft == resource.RLIM_INFINITY or resource.RLIM_INFINITY != limit <= soft:
            return
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        except (OSError, ValueError):
            continue
        return


def open_file_limit() -> int | None:
    """Return the number of files that this process may open; None without a limit."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if resource else -1
    return None if resource is None or soft == resource.RLIM_INFINITY else soft


def exhausted(error: BaseException) -> int | None:
    """Return the error number if the system ran out of something; None for any other error.

    PyTorch raises RuntimeError with the system's text in the message. `multiprocessing` finds fewer handles in a
    message than announced if this process cannot open them.
    """
    number = getattr(error, "errno", None)
    for known in EXHAUSTED:
        if number == known or (isinstance(error, RuntimeError) and os.strerror(known) in str(error)):
            return known
    return errno.EMFILE if "items of ancdata" in str(error) else None
