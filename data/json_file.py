"""`read_json` and `read_json_lines`: JSON files from any source, with errors that contain file, reason and place."""

import gc
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .paths import resolved
from .regular_files import NotRegularFileError, open_regular
from .shown import shown

# A larger file does not fit into the memory of most machines as Python objects.
MAX_BYTES = 8 * 2**30
# Digits of the largest float; a longer integer cannot be converted to a float.
_MAX_DIGITS = 308
# Beginnings of files that are often mistaken for JSON.
_OTHER_KINDS = {
    b"version https://git-lfs": "the file is a pointer of Git LFS; `git lfs pull` downloads its content",
    b"\x1f\x8b": "the file is compressed with gzip; unpack it first",
    b"PK\x03\x04": "the file is a zip archive; unpack it first",
    b"<": "the file is an HTML or XML page",
}


class JsonError(ValueError):
    """A file is not readable as JSON; the message contains the file, the reason and the place."""


def read_json(path: Path, what: str = "file") -> Any:
    """Read a JSON file in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Integers of more digits than a float can have become infinite, as Python reads 1e999. A caller that checks numbers
    can then name the entry.

    Args:
        path: File; must be a regular file, because a pipe or a device may never end.
        what: Kind of file, the first words of messages.

    Raises:
        JsonError: If the file is missing, not a regular file, too large, or not valid JSON. Also if an object has two
            different values of a key, of which Python's reader silently keeps only the last.
    """
    return parse_json(read_bytes(path, what), f"{what} {path}")


def parse_json(content: bytes, name: str) -> Any:
    """Convert bytes to plain values, see `read_json`; `name` is the beginning of messages."""
    try:
        with pause_garbage_collection():
            text = content.decode(json.detect_encoding(content)).removeprefix("\ufeff")
            return json.loads(text, parse_int=_integer, object_pairs_hook=_mapping)
    except json.JSONDecodeError as error:
        raise JsonError(f"{name} is not valid JSON: {_reason(content, error)}") from None
    except UnicodeDecodeError as error:
        reason = _other_kind(content) or f"position {error.start} has a byte that is not {error.encoding}"
        raise JsonError(f"{name} is not valid JSON: {reason}") from None
    except RecursionError:
        raise JsonError(f"{name} is not valid JSON: its lists and objects are nested too deeply") from None
    except MemoryError:
        raise JsonError(f"{name} has {len(content):,} bytes, which is too large for the memory") from None
    except _RepeatedKeyError as error:
        raise JsonError(
            f"{name} is not valid JSON: an object must have each key once, got two different values of {error}"
        ) from None


def read_json_lines(path: Path, is_valid: Callable[[Any], bool], what: str = "file") -> tuple[list[Any], list[int]]:
    """Read a file with one JSON value per line; arguments and errors as of `read_json`.

    Returns:
        The values, and the numbers of the lines that are not JSON or for whose value `is_valid` is False. Numbers count
        from 1. Empty lines are skipped.
    """
    values, damaged = [], []
    for number, line in enumerate(read_bytes(path, what).splitlines(), start=1):
        if line.strip():
            try:
                value = parse_json(line, "")
            except JsonError:
                damaged.append(number)
            else:
                (values if is_valid(value) else damaged).append(value if is_valid(value) else number)
    return values, damaged


def read_bytes(path: Path, what: str = "file") -> bytes:
    """Return the content of a regular file of up to `MAX_BYTES`.

    Raises:
        JsonError: If the file is missing, not a regular file, too large or not readable.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise JsonError(f"{what} {path} must have at most {MAX_BYTES:,} bytes, got {size:,}")
            return file.read()
    except FileNotFoundError:
        raise JsonError(f"{what} {path} does not exist (resolved: {resolved(path)})") from None
    except JsonError:
        raise
    except NotRegularFileError as error:
        raise JsonError(f"{what} {path} {error.strerror}") from None
    except MemoryError:
        raise JsonError(f"{what} {path} is too large for the memory") from None
    except (OSError, ValueError) as error:  # a name with a NUL character is a ValueError
        raise JsonError(f"{what} {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


class _RepeatedKeyError(Exception):
    """An object has a key twice."""


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        for key, value in pairs:
            if found[key] is not value and found[key] != value:
                raise _RepeatedKeyError(shown(key))
    return found


def _integer(digits: str) -> float:
    return int(digits) if len(digits) <= _MAX_DIGITS else -math.inf if digits[0] == "-" else math.inf


def _reason(content: bytes, error: json.JSONDecodeError) -> str:
    if not error.doc.strip():
        return "the file is empty"
    if other := _other_kind(content):
        return other
    is_cut = error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated string")
    return f"{error}{'; the file ends too early' if is_cut else ''}"


def _other_kind(content: bytes) -> str | None:
    start = content[:64].lstrip()
    return next((kind for magic, kind in _OTHER_KINDS.items() if start.startswith(magic)), None)


@contextmanager
def pause_garbage_collection() -> Iterator[None]:
    """Pause the collector, which would scan a growing tree again and again, more than half of the time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
