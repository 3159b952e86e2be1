"""Paths as users write them: with a tilde, with links, or impossible for the system."""

import os
from pathlib import Path


def resolved(path: str | os.PathLike) -> Path:
    """Return the absolute path without links, for comparisons and messages. It never raises.

    A path that the system cannot resolve stays as it is written, after the working directory. Examples are a path with
    a NUL character or a lone surrogate, and a relative path in a working directory that is deleted.
    """
    for resolve in (os.path.realpath, os.path.abspath):
        try:
            return Path(resolve(path))
        except (OSError, ValueError, RuntimeError):
            continue
    return Path(path)


def expanded(path: str | os.PathLike) -> Path:
    """Return a path with `~` and `~user` replaced by the home folder, as a shell does. It never raises.

    A path that exists as it is written stays, and so does a name of an unknown user.
    """
    if os.path.lexists(path):
        return Path(path)
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser() raises for an unknown user
