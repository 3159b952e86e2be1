"""Values and names of files as short text of one line that is harmless on a terminal, for messages.

`models/shown.py` is a copy of this file: `models` is in the package without `data`.
"""

import datetime
import numbers
import reprlib
import unicodedata
from collections.abc import Mapping, Set
from itertools import islice
from pathlib import PurePath
from typing import Any

LIMIT = 200
_ELLIPSIS = "..."
_PLAIN = (numbers.Number, datetime.date, datetime.time)


def shown(value: Any, limit: int = LIMIT) -> str:
    """Return a foreign value as Python writes it: printable text of one line with at most `limit` characters.

    Text is quoted, and its control characters are escaped. The time and the memory do not depend on the size of the
    value. Lists that contain the same list many times do not grow, because inner levels and long lists are shortened.
    """
    writer = _Repr()
    writer.maxstring = writer.maxother = limit
    return shortened(escaped(writer.repr(value)), limit)


def escaped(text: str, *, keep: str = "") -> str:
    r"""Return text with escapes such as `\x1b` instead of control characters, line breaks and lone surrogates.

    Printable characters of all languages stay, and the characters of `keep`.
    """
    if text.translate(dict.fromkeys(map(ord, keep))).isprintable():
        return text
    return "".join(char if char in keep or _is_shown(char) else repr(char)[1:-1] for char in text)


def shortened(text: str, limit: int = LIMIT) -> str:
    """Return text of at most `limit` characters; dots replace the middle of a longer text."""
    if len(text) <= limit:
        return text
    rest = max(limit - len(_ELLIPSIS), 0)
    return text[: rest - rest // 2] + _ELLIPSIS[:limit] + text[len(text) - rest // 2 :]


def _is_shown(char: str) -> bool:
    return char.isprintable() or unicodedata.category(char) == "Zs"  # spaces of other widths


class _Repr(reprlib.Repr):
    """Writes standard types by their base class, and other objects by the name of their type alone.

    `reprlib` selects by the name of the type, and calls `repr` for others, which has no bound.
    """

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = 5

    def repr1(self, x: Any, level: int) -> str:
        if isinstance(x, bool) or x is None:
            return repr(x)
        if isinstance(x, int):
            return repr(int(x)) if x.bit_length() < 3 * self.maxother else f"<integer of {x.bit_length()} bits>"
        if isinstance(x, str | PurePath):
            return self.repr_str(str(x), level)
        if isinstance(x, bytes | bytearray):
            return shortened(repr(bytes(x[: self.maxstring])), self.maxstring)
        if isinstance(x, Mapping):  # part of it, because the base class sorts the keys
            return self.repr_dict(dict(islice(x.items(), self.maxdict + 1)), level)
        if isinstance(x, Set):
            return self.repr_set(set(islice(x, self.maxset + 1)), level)
        if isinstance(x, list):
            return self.repr_list(x, level)
        if isinstance(x, tuple):
            return self.repr_tuple(x, level)
        if isinstance(x, _PLAIN):
            return shortened(repr(x), self.maxother)
        shape = getattr(x, "shape", None)
        size = f" of shape {tuple(shape)}" if isinstance(shape, tuple) else ""
        return f"<{type(x).__name__}{size}>"
