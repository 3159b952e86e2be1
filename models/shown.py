"""Values of a file, shortened for messages."""

import reprlib
from collections.abc import Mapping
from typing import Any

_LARGEST = 10**30


class _Shown(reprlib.Repr):
    """Representation of bounded length, also of nested shared references, for which `repr` grows exponentially."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 2, 60, 60
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = 4

    def repr_int(self, value: int, _: int) -> str:
        """Return the digits, or the number of bits: Python raises an error for thousands of digits."""
        return str(value) if abs(value) < _LARGEST else f"<an integer of {value.bit_length()} bits>"

    def repr_instance(self, value: Any, level: int) -> str:
        """Return the content of mappings, and the type of objects, whose own `repr` may be of any length."""
        if isinstance(value, Mapping):
            return self.repr_dict(dict(value), level)
        if isinstance(value, float | bool | bytes | type(None)):
            return super().repr_instance(value, level)
        return f"<{type(value).__name__}>"


shown = _Shown().repr
