"""Atomic writes: a reader gets the old or the new file, never a part."""

import glob
import io
import json
import math
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# Characters of a file name that its temporary name keeps: any name that the system allows leaves room for the rest.
_KEPT = 48


class OutputFile(io.BufferedWriter):
    """A new file. It accepts everything, and keeps the first error of the system until `sync`.

    Libraries replace the error by a vague one (Pillow, PyTorch), or end the process (PyTorch's archives).
    """

    def __init__(self, raw: "_Raw") -> None:
        super().__init__(raw)

    def fileno(self) -> int:
        """Raise, because a library that writes to the descriptor bypasses this file."""
        raise io.UnsupportedOperation("fileno")

    def sync(self) -> None:
        """Write everything to the disk, and raise the first `OSError`."""
        self.flush()
        self.raise_error()
        os.fsync(self.raw.fileno())

    def raise_error(self) -> None:
        """Raise the first `OSError`, if there was one."""
        if self.raw.error is not None:
            raise self.raw.error


class _Raw(io.FileIO):
    error: OSError | None = None

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                return super().write(data)
            except OSError as error:
                self.error = error
        return len(data)


@contextmanager
def atomic_file(path: Path, *, in_new_folder: bool = True) -> Iterator[OutputFile]:
    """Yield a file to write; it replaces `path` at the end, or is removed after an error.

    The file is new and has a random name until then. So a link that another user put in its place is never followed,
    and a link at `path` itself is replaced. Pipes and devices such as /dev/stdout are written directly.

    Args:
        path: File to write.
        in_new_folder: Create the folder if it is missing.

    Raises:
        OSError: If the file cannot be written, also on a full disk; it always names `path`.
    """
    try:
        if is_stream(path):
            with OutputFile(_open_stream(path)) as file, _first_error_of(file):
                yield file
            return
        if in_new_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name[:_KEPT]}.{secrets.token_hex(4)}.partial")
        file = OutputFile(_Raw(partial, "x"))  # fails if there is a file or a link
        try:
            with file, _first_error_of(file):
                yield file
            partial.replace(path)
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
    except OSError as error:
        if error.filename in (None, str(path)) or str(error.filename).endswith(".partial"):
            raise type(error)(error.errno, error.strerror or str(error), str(path)) from error
        raise


def remove_partials(path: Path) -> None:
    """Remove the temporary files of `path` that killed processes left; no other process may write it now."""
    for partial in path.parent.glob(f"{glob.escape(path.name[:_KEPT])}.{'[0-9a-f]' * 8}.partial"):
        with suppress(OSError):
            partial.unlink()


def is_stream(path: Path) -> bool:
    """Whether a path is a pipe or a device, which cannot be replaced."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def without_link(path: str, flags: int) -> int:
    """Open a file that is written in place, as the `opener` of `open`; a link to another file is an `OSError`."""
    followed = 0 if is_stream(Path(path)) else getattr(os, "O_NOFOLLOW", 0)
    return os.open(path, flags | followed, 0o666)


def _open_stream(path: Path) -> _Raw:
    # a named pipe that nobody reads would block for ever
    handle = os.open(path, os.O_WRONLY | getattr(os, "O_NONBLOCK", 0))
    os.set_blocking(handle, True)
    return _Raw(handle, "w")


@contextmanager
def _first_error_of(file: OutputFile) -> Iterator[None]:
    """Raise the first error of the file in place of later ones."""
    try:
        yield
        file.flush()
    finally:
        file.raise_error()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically and create its folder; lone surrogates are written as escapes."""
    with atomic_file(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, value: Any, *, indent: int | None = None) -> None:
    """Write plain values as a JSON file, see `write_text`."""
    write_text(path, json.dumps(value, indent=indent))


def without_nan(value: Any) -> Any:
    """Return plain values with None instead of NaN, which JSON does not support."""
    if isinstance(value, Mapping):
        return {key: without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value
