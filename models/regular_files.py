"""Opening regular files, without waiting for a named pipe or a device.

`models/regular_files.py` is a copy of this file: `models` is in the package without `data`.
"""

import errno
import os
import stat
from typing import BinaryIO

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


class NotRegularFileError(OSError):
    """A file is a named pipe, a device, a socket or a folder; `strerror` continues after the name of the file."""


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Open a regular file to read. A named pipe, a device and a socket are errors and never block.

    Raises:
        OSError: If the file cannot be opened; a `NotRegularFileError` if it is not a regular file.
    """
    # without O_NONBLOCK, opening a named pipe waits for a writer
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.EOPNOTSUPP):  # a socket cannot be opened
            raise NotRegularFileError(error.errno, "must be a regular file, got a socket or a device") from None
        raise
    # of the opened file, since another file may have taken its name
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise NotRegularFileError(errno.EINVAL, f"must be a regular file, got {kind_of_file(mode)}")
    return os.fdopen(descriptor, "rb")


def kind_of_file(mode: int) -> str:
    """Describe a file that is not a regular file by its mode, as in "a named pipe"."""
    return _KINDS.get(stat.S_IFMT(mode), "a special file")
