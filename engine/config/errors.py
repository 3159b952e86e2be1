"""`ConfigError`, and the words of its messages."""

import difflib
import re
from collections.abc import Sequence
from os import PathLike
from typing import Any

from data.shown import escaped, shortened, shown

from .keys import fields

_MAX_GUESSED = 100  # characters of a name


class ConfigError(ValueError):
    """A config is not valid; the message lists every error with its dotted key."""


def describe_problem(problem: dict[str, Any]) -> str:
    """Return the line of one of pydantic's problems."""
    dotted = ".".join(str(part) for part in problem["loc"] if not _is_union_member(part))
    dotted = short(dotted) or "the config"
    if problem["type"] == "extra_forbidden":
        dotted = ".".join(map(str, problem["loc"]))
        return f"{short(dotted)}: unknown key{guess_key(dotted)}"
    if problem["type"] == "missing":
        return f"{dotted}: is missing"
    expected = problem["msg"].replace("Input should be", "expected", 1)
    if problem["type"] == "value_error":
        expected = str(problem["ctx"]["error"])
    got = "" if ", got " in expected else f", got {shown(problem['input'])}"
    return f"{dotted}: {expected}{got}"


def guess_key(dotted: str) -> str:
    """Return a "did you mean" for a dotted key that is not known."""
    return guess_of(dotted, [*fields()])


def named(path: str | PathLike) -> str:
    """Return a path for a message."""
    return short(str(path))


def short(text: str) -> str:
    """Return a foreign text for a message, without quotes."""
    return shortened(escaped(text))


def guess_of(name: str, known: Sequence[str]) -> str:
    """Return a "did you mean" for a misspelt name; for dotted names the last part counts, in any section."""
    if len(name) > _MAX_GUESSED:
        return ""
    last = name.rpartition(".")[2]
    by_last: dict[str, list[str]] = {}
    for key in known:
        by_last.setdefault(key.rpartition(".")[2], []).append(key)
    close = by_last.get(last) or difflib.get_close_matches(name, known, 1, 0.75)
    close = close or [key for match in difflib.get_close_matches(last, list(by_last), 1, 0.7) for key in by_last[match]]
    return f", did you mean {close[0]!r}?" if close else ""


def _is_union_member(part: str | int) -> bool:
    """Whether a part of pydantic's location names a member of a union, as in int or list[...], and not a key."""
    return isinstance(part, str) and (part in ("int", "float", "str", "bool") or not re.fullmatch(r"\w+", part))
