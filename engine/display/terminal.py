"""Streams for people: text that the terminal can show, and an output that goes away ends no work."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from data.shown import escaped, shortened

# Characters of a message; a longer one has quoted a whole file.
LONGEST = 10_000


class Styled(str):
    """Text whose escape codes are this project's own."""

    __slots__ = ()


def for_people(message: str) -> str:
    """Return a message without control characters, and not longer than `LONGEST`."""
    return shortened(escaped(message, keep="\n\t"), LONGEST)


class Output:
    """A text stream for people, in place of stdout or stderr. Its methods raise no error of the system.

    After the first error, for example because `head` closed the pipe, or the terminal or the disk is gone, the rest of
    the output is discarded.

    Args:
        stream: the stream.
        is_plain: escape control characters, except in `Styled` text.

    Attributes:
        error: the first error, or None.
    """

    def __init__(self, stream: TextIO, *, is_plain: bool) -> None:
        self._stream, self._is_plain = stream, is_plain
        self.error: Exception | None = None
        with suppress(AttributeError, ValueError, OSError):  # a stream without an encoding, or closed
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Write text; control characters are escaped in a plain stream."""
        if self._is_plain and not isinstance(text, Styled):
            text = escaped(text, keep="\n\t")
        self._try(self._stream.write, text)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the stream."""
        self._try(self._stream.flush)

    @property
    def lost(self) -> Exception | None:
        """The error if output was lost although somebody may want it; nobody does if a pipe was closed."""
        return None if getattr(self.error, "errno", None) in (errno.EPIPE, errno.EIO) else self.error

    def _try(self, call: Callable, *arguments: Any) -> None:
        try:
            call(*arguments)
        except (OSError, ValueError) as error:
            if isinstance(error, ValueError) and not self._stream.closed:
                raise
            if self.error is None:
                self.error = error
                self._discard_the_rest()

    def _discard_the_rest(self) -> None:
        """Connect the descriptor to nowhere: the stream, libraries and child processes then have no error either."""
        with suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def safe_outputs() -> Iterator[tuple[Output, Output]]:
    """Context in which stdout and stderr are `Output`s; stdout is plain, and bars on stderr use escape codes."""
    before = sys.stdout, sys.stderr
    streams = [stream or open(os.devnull, "w", encoding="utf-8") for stream in before]  # noqa: SIM115, PTH123
    outputs = Output(streams[0], is_plain=True), Output(streams[1], is_plain=False)
    sys.stdout, sys.stderr = outputs
    try:
        yield outputs
    finally:
        for output in outputs:
            output.flush()
        sys.stdout, sys.stderr = before
