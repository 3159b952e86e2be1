"""Safe reader of pickles: it accepts only arrays and plain values.

A pickle can name any function and have it called. This reader looks up each name in `ALLOWED` only and imports nothing.
Even NumPy's functions are replaced by substitutes that accept numbers and raise an error for other types.
"""

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, BinaryIO, ClassVar

import numpy as np

from .shown import shown

# NumPy type codes of numbers, without "O", which contains any object
NUMBERS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}


class PickleError(ValueError):
    """A pickle that contains more than arrays and plain values."""


class Dtype:
    """Replaces numpy.dtype."""

    def __init__(self, code: str = "", *_: Any) -> None:
        if not isinstance(code, str) or code.lstrip("<>=|") not in NUMBERS:
            raise PickleError(f"it contains an array of {shown(code)}, which is not a number type")
        self.numpy = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order not in ("<", ">", "=", "|"):
            raise PickleError(f"it contains a dtype of the byte order {shown(order)}")
        self.numpy = self.numpy.newbyteorder(order)


class Array:
    """Replaces numpy.ndarray; `value` is the array."""

    value: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise PickleError("it contains an array that does not have NumPy's format")
        _, shape, dtype, is_fortran, data = state
        self.value = _array(data, dtype, shape, "F" if is_fortran else "C")

    def numbers(self) -> np.ndarray:
        """Return the array."""
        if self.value is None:
            raise PickleError("it contains an array without numbers")
        return self.value


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
        raise PickleError(f"it contains an array of shape {shown(shape)} with {len(data)} bytes")
    numbers = np.frombuffer(data, dtype.numpy) if data else np.empty(0, dtype.numpy)
    return numbers.astype(dtype.numpy.newbyteorder("=")).reshape(shape, order=order)


def _reconstruct(kind: Any = None, *_: Any) -> Array:
    if kind is not Array:
        raise PickleError(f"it makes an array of {shown(kind)}")
    return Array()


def _frombuffer(data: Any = None, dtype: Any = None, shape: Any = None, order: Any = "C") -> Array:
    if order not in ("C", "F"):
        raise PickleError(f"it makes an array of the order {shown(order)}")
    array = Array()
    array.value = _array(data, dtype, shape, order)
    return array


def _scalar(dtype: Any = None, data: Any = None) -> int | float | bool:
    return _array(data, dtype, ()).item()


def _encode(text: Any = None, codec: Any = None) -> bytes:
    if not isinstance(text, str) or codec != "latin1":
        raise PickleError(f"it encodes {type(text).__name__} as {shown(codec)}")
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


def _ordered_dict(items: Any = ()) -> OrderedDict:
    """Replaces OrderedDict."""
    pairs = items if isinstance(items, list | tuple) else [items]
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise PickleError(f"it makes a dict of {shown(items)}")
    made: OrderedDict = OrderedDict()
    _add_items(made, pairs)
    return made


def _add_items(target: Any, items: Iterable[Sequence[Any]]) -> None:
    """Add items to a dict with plain keys: to hash nested shared tuples would take for ever."""
    if not isinstance(target, dict):
        raise PickleError(f"it adds an item to {shown(target)}, which is not a dict")
    for key, value in items:
        if not isinstance(key, str | int | float | bytes | None):
            raise PickleError(f"it contains a dict with the key {shown(key)}")
        target[key] = value


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
    "collections.OrderedDict": _ordered_dict,
    "_codecs.encode": _encode,
    "builtins.bytes": _bytes,
    "builtins.tuple": _tuple,
}
# names in a .pth that torch.load does not allow: training with mmdetection writes them into checkpoints
ALLOWED_IN_TORCH: dict[str, Any] = _NUMPY | {
    "mmengine.logging.history_buffer.HistoryBuffer": IgnoredObject,
    "builtins.getattr": _attribute,
}


class _Unpickler(pickle._Unpickler):
    """Unpickler that finds only the names in `ALLOWED`.

    It is the one in Python: the one in C allocates and clears as much memory as a 9-byte pickle asks for.
    """

    renamed: ClassVar[dict[str, str]] = {"copy_reg": "copyreg", "__builtin__": "builtins"}
    dispatch: ClassVar[dict[int, Callable[..., None]]] = dict(pickle._Unpickler.dispatch)

    def load_items(self) -> None:
        """Add items to a dict."""
        items = self.pop_mark()
        _add_items(self.stack[-1], zip(items[::2], items[1::2], strict=True))

    def load_item(self) -> None:
        """Add an item to a dict."""
        value, key = self.stack.pop(), self.stack.pop()
        _add_items(self.stack[-1], [(key, value)])

    def load_dict(self) -> None:
        """Make a dict of items."""
        self.stack, items = self.metastack.pop(), self.stack
        self.append = self.stack.append
        self.stack.append({})
        _add_items(self.stack[-1], zip(items[::2], items[1::2], strict=True))

    def load_set(self) -> None:
        """Raise an error."""
        raise PickleError("it contains a set")

    dispatch |= {pickle.SETITEMS[0]: load_items, pickle.SETITEM[0]: load_item, pickle.DICT[0]: load_dict}
    dispatch |= {pickle.EMPTY_SET[0]: load_set, pickle.FROZENSET[0]: load_set}

    def find_class(self, module: str, name: str) -> Any:
        path = f"{self.renamed.get(module, module)}.{name}"
        if path not in ALLOWED:
            raise PickleError(f"it contains {path[:200]}, but only arrays and plain values are allowed")
        return ALLOWED[path]

    def persistent_load(self, pid: Any) -> Any:
        raise PickleError(f"it refers to {shown(pid)} outside of the file")


def load_pickle(file: BinaryIO | io.BytesIO) -> Any:
    """Read a pickle that contains only numbers, text, lists, dicts and NumPy arrays.

    Raises:
        PickleError: If it is damaged or contains another type, with the name of the type.
    """
    try:
        return plain(_Unpickler(file, encoding="latin1").load())
    except PickleError:
        raise
    except RecursionError:
        raise PickleError("its values are nested too deeply") from None
    except Exception as error:
        # a damaged pickle raises a dozen types of errors
        reason = str(error)[:200] or type(error).__name__
        raise PickleError(f"it is not a pickle, or it is damaged: {reason}") from error


def plain(value: Any, done: dict[int, Any] | None = None) -> Any:
    """Replace the substitutes in a value by their arrays.

    Args:
        value: Value of a pickle.
        done: Results by the identity of their values: shared references are replaced once and stay shared.

    Raises:
        PickleError: If an array has no numbers.
    """
    done = {} if done is None else done
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, Array):
        return value.numbers()
    if isinstance(value, dict):
        result = done[id(value)] = {}
        result.update((key, plain(item, done)) for key, item in value.items())
        return result
    if isinstance(value, list | tuple):
        result = done[id(value)] = []
        result += [plain(item, done) for item in value]
        return result
    return value
