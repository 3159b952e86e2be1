"""Safe reader of pickles: it accepts only arrays and plain values.

A pickle can name any function and have it called. This reader looks up each name in `ALLOWED` only and imports nothing.
Even NumPy's functions are replaced by substitutes that accept numbers and raise an error for other types.
"""

import io
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

# NumPy type codes of numbers, without "O", which contains any object
NUMBERS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}


class PickleError(ValueError):
    """A pickle that contains more than arrays and plain values."""


class Dtype:
    """Replaces numpy.dtype."""

    def __init__(self, code: str = "", *_: Any) -> None:
        if not isinstance(code, str) or code.lstrip("<>=|") not in NUMBERS:
            raise PickleError(f"it contains an array of {code!r}, which is not a number type")
        self.numpy = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order not in ("<", ">", "=", "|"):
            raise PickleError(f"it contains a dtype of the byte order {order!r}")
        self.numpy = self.numpy.newbyteorder(order)


class Array:
    """Replaces numpy.ndarray; `value` is the array."""

    value: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise PickleError("it contains an array that does not have NumPy's format")
        _, shape, dtype, is_fortran, data = state
        self.value = _array(data, dtype, shape, "F" if is_fortran else "C")


class IgnoredObject:
    """Replaces objects that are not needed; stores nothing and does nothing."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _array(data: Any, dtype: Any, shape: Any, order: str = "C") -> np.ndarray:
    if isinstance(data, str):  # of Python 2
        data = data.encode("latin1")
    is_shape = isinstance(shape, tuple) and all(type(side) is int and side >= 0 for side in shape)
    if not isinstance(data, bytes | bytearray) or not isinstance(dtype, Dtype) or not is_shape:
        raise PickleError("it contains an array that is not numeric")
    if len(data) != dtype.numpy.itemsize * int(np.prod(shape, dtype=object)):
        raise PickleError(f"it contains an array of shape {shape} with {len(data)} bytes")
    numbers = np.frombuffer(data, dtype.numpy) if data else np.empty(0, dtype.numpy)
    return numbers.astype(dtype.numpy.newbyteorder("=")).reshape(shape, order=order)


def _reconstruct(kind: Any = None, *_: Any) -> Array:
    if kind is not Array:
        raise PickleError(f"it makes an array of {kind!r}")
    return Array()


def _frombuffer(data: Any = None, dtype: Any = None, shape: Any = None, order: Any = "C") -> Array:
    if order not in ("C", "F"):
        raise PickleError(f"it makes an array of the order {order!r}")
    array = Array()
    array.value = _array(data, dtype, shape, order)
    return array


def _scalar(dtype: Any = None, data: Any = None) -> int | float | bool:
    return _array(data, dtype, ()).item()


def _encode(text: Any = None, codec: Any = None) -> bytes:
    if not isinstance(text, str) or codec != "latin1":
        raise PickleError(f"it encodes {type(text).__name__} as {codec!r}")
    return text.encode("latin1")


def _bytes(*arguments: Any) -> bytes:
    """Replaces bytes, which old pickles call for empty ones."""
    if arguments:
        raise PickleError(f"it makes bytes of {type(arguments[0]).__name__}")
    return b""


def _tuple(items: Any = ()) -> tuple:
    """Replaces tuple, which PaddlePaddle calls for pairs of a name and an array."""
    if not isinstance(items, tuple | list):
        raise PickleError(f"it makes a tuple of {type(items).__name__}")
    return tuple(items)


def _attribute(*_: Any) -> IgnoredObject:
    """Replaces getattr, by which mmengine's history names its own methods."""
    return IgnoredObject()


_NUMPY = {
    "numpy.ndarray": Array,
    "numpy.dtype": Dtype,
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy._core.multiarray._reconstruct": _reconstruct,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _frombuffer,
    "numpy._core.numeric._frombuffer": _frombuffer,
}
# all names that a pickle of detectron2 or PaddlePaddle may contain
ALLOWED: dict[str, Any] = _NUMPY | {
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": _encode,
    "builtins.bytes": _bytes,
    "builtins.tuple": _tuple,
}
# names in a .pth that torch.load does not allow: training with mmdetection writes them into checkpoints
ALLOWED_IN_TORCH: dict[str, Any] = _NUMPY | {
    "mmengine.logging.history_buffer.HistoryBuffer": IgnoredObject,
    "builtins.getattr": _attribute,
}


class _Unpickler(pickle.Unpickler):
    """Unpickler that finds only the names in `ALLOWED`."""

    renamed: ClassVar[dict[str, str]] = {"copy_reg": "copyreg", "__builtin__": "builtins"}

    def find_class(self, module: str, name: str) -> Any:
        path = f"{self.renamed.get(module, module)}.{name}"
        if path not in ALLOWED:
            raise PickleError(
                f"it contains {path}, but only arrays and plain values are allowed: {', '.join(sorted(ALLOWED))}"
            )
        return ALLOWED[path]

    def persistent_load(self, pid: Any) -> Any:
        raise PickleError(f"it refers to {pid!r} outside of the file")


def read_pickle(path: Path) -> Any:
    """Read a pickle that contains only numbers, text, lists, dicts and NumPy arrays.

    Raises:
        PickleError: if it is damaged or contains another type, with the name of the type.
    """
    with path.open("rb") as file:
        return load_pickle(file)


def load_pickle(file: BinaryIO | io.BytesIO) -> Any:
    """Read a pickle from an open file; see `read_pickle`."""
    try:
        return plain(_Unpickler(file, encoding="latin1").load())
    except PickleError:
        raise
    except Exception as error:
        # a damaged pickle raises a dozen types of errors
        raise PickleError(f"it is not a pickle, or it is damaged: {error}") from error


def plain(value: Any) -> Any:
    """Replace the substitutes in a value by their arrays."""
    if isinstance(value, Array):
        if value.value is None:
            raise PickleError("it contains an array without numbers")
        return value.value
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
