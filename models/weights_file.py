"""Reader of files with weights: PyTorch, safetensors, NumPy, and pickles of arrays. It never runs code of a file."""

import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from .pickles import ALLOWED_IN_TORCH, PickleError, load_pickle
from .regular_files import NotRegularFileError, open_regular
from .shown import shown

_MISSING = "it does not exist"
_FOLDER = 0x10  # attribute of a folder's record in a zip archive
_OLD_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # PyTorch's files before version 1.6
# PyTorch does not compress its records. An archive may be larger than its file by this factor and number of bytes.
_EXPANSION, _EXPANSION_BYTES = 20, 2**26
_MAX_HEADER = 10**8  # bytes of the header of a safetensors file, a limit of the library
_TEXT = re.compile(rb"[\t\n\r\x20-\x7e\xa0-\xff]*")
_COLORS = re.compile(r"\x1b\[[0-9;]*m")
# first bytes of other files that often have the name of weights
_OTHERS = {
    b"version https://git-lfs": "it is a pointer of Git LFS, not the weights: run git lfs pull",
    b"<": "it is a web page, not weights: open its address in a browser, or download it again",
    b"\x1f\x8b": "it is compressed with gzip: unpack it first",
    b"BZh": "it is compressed with bzip2: unpack it first",
    b"\xfd7zXZ": "it is compressed with xz: unpack it first",
    b"7z\xbc\xaf": "it is a 7-Zip archive: unpack it first",
    b"Rar!": "it is a RAR archive: unpack it first",
    b"\x89HDF": "it is an HDF5 file of Keras or TensorFlow, which is not supported",
    b"GGUF": "it is a GGUF file, which is not supported",
    b"\x08": "it is an ONNX file, which contains no state dict",
}


class WeightsFileError(ValueError):
    """A file that cannot be read; the message is the reason, without the name of the file."""


def unreadable(error: ValueError) -> str:
    """Return an error of `read_weights_file` as the rest of a sentence about the file."""
    return str(error).removeprefix("it ") if str(error).startswith(_MISSING) else f"cannot be read: {error}"


def read_weights_file(path: Path) -> Any:
    """Read a file of any supported format, which its content decides and not its name.

    Returns:
        The content: containers and plain values with tensors, arrays, or `pickles.Array` for arrays within a file of
            PyTorch. `state_dict.find_state_dict` finds the weights in it.

    Raises:
        WeightsFileError: If the file is missing, not a regular file, damaged, of another format, or contains more than
            tensors, arrays and plain values.
    """
    try:
        with open_regular(path) as file:
            head = file.read(512)
            file.seek(0)
            return _choose_reader(head)(file)
    except (WeightsFileError, PickleError) as error:
        raise WeightsFileError(str(error)) from None
    except FileNotFoundError:
        raise WeightsFileError(f"{_MISSING} (resolved: {path.absolute()})") from None
    except NotRegularFileError as error:
        raise WeightsFileError(f"it {error.strerror}") from None
    except (OSError, ValueError) as error:  # a name with a NUL character is a ValueError
        raise WeightsFileError(getattr(error, "strerror", None) or str(error)) from error


def _choose_reader(head: bytes) -> Callable[[BinaryIO], Any]:
    if not head:
        raise WeightsFileError("it is empty (0 bytes)")
    if head.startswith(b"PK"):
        return _read_zip
    if head.startswith(_OLD_TORCH):
        return _read_torch
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < _MAX_HEADER:
        return _read_safetensors
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    reason = next((text for first, text in _OTHERS.items() if start.startswith(first)), None)
    if reason:
        raise WeightsFileError(reason)
    return _read_pickle


def _read_pickle(file: BinaryIO) -> Any:
    try:
        return load_pickle(file)
    except PickleError as error:
        file.seek(0)
        if _TEXT.fullmatch(head := file.read(64)) and head[:1] not in b"(c]}":  # of pickles that are text
            raise WeightsFileError(f"it is text, not weights: it starts with {shown(head.decode('latin1'))}") from error
        raise


def _read_zip(file: BinaryIO) -> Any:
    try:
        names = _check_records(file)
    except zipfile.BadZipFile as error:
        raise WeightsFileError(f"{str(error)[:1].lower()}{str(error)[1:]}; it is truncated or damaged") from error
    except (WeightsFileError, OSError):
        raise
    except Exception as error:  # a damaged directory of the archive raises a dozen types of errors
        raise WeightsFileError(f"it is damaged: {error}") from error
    file.seek(0)
    if names and all(name.endswith(".npy") for name in names):
        return _read_numpy(file)
    if not any(name.endswith("data.pkl") for name in names):
        raise WeightsFileError(
            f"it is a zip archive without weights of PyTorch or NumPy; it contains {shown(sorted(names))}"
        )
    return _read_torch(file)


def _check_records(file: BinaryIO) -> list[str]:
    """Compare the records of a zip archive with their CRC-32; torch.load does not detect damaged numbers.

    Returns:
        The names of the records.

    Raises:
        WeightsFileError: If a record is damaged, or the records are much larger than the file.
        BadZipFile: If the file is not a zip archive.
    """
    size = file.seek(0, 2)
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        total = sum(record.file_size for record in records)
        if total > _EXPANSION * size + _EXPANSION_BYTES:
            raise WeightsFileError(f"its {size} bytes would expand to {total} bytes")
        # torch.load does not read a record that is marked as a folder, and returns uninitialised memory
        marked = (record.filename for record in records if record.external_attr & _FOLDER)
        damaged = next(marked, None) or archive.testzip()
    if damaged:
        raise WeightsFileError(f"it is damaged: the checksum of its record {shown(damaged)} does not match")
    return [record.filename for record in records]


def _read_torch(file: BinaryIO) -> Any:
    stand_ins = [(stand_in, name) for name, stand_in in ALLOWED_IN_TORCH.items()]
    try:
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the pickle's protocol, and of deprecated storages
            return torch.load(file, map_location="cpu", weights_only=True)
    except PickleError:
        raise
    except Exception as error:
        # torch.load raises a dozen types of errors, and its messages explain how to run unsafe content
        raise WeightsFileError(_reason(error)) from error


def _reason(error: Exception) -> str:
    text = _COLORS.sub("", str(error))
    if named := re.search(r"(?:GLOBAL|class|function) ([\w]+\.[\w.]+)", text):
        hint = "; save model.state_dict() instead of the model" if "__reduce__" not in named[1] else ""
        return f"it contains {named[1]}, but only tensors, arrays and plain values are allowed{hint}"
    if "TorchScript" in text:
        return "it is a TorchScript program, not a state dict"
    if isinstance(error, RecursionError):
        return "its values are nested too deeply"
    first = re.split(r"\.\s|\n", text)[0].strip()
    if not first or "weights_only" in first or "WeightsUnpickler" in first:
        first = "it contains more than tensors, arrays and plain values"
    return f"it is damaged or not a file of PyTorch: {first[:200]}"


def _read_numpy(file: BinaryIO) -> dict[str, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # a damaged header raises a dozen types of errors
        raise WeightsFileError(f"it is damaged, or contains more than arrays of numbers: {str(error)[:200]}") from error


def _read_safetensors(file: BinaryIO) -> dict[str, torch.Tensor]:
    try:
        from safetensors.torch import load
    except ImportError:
        raise WeightsFileError("a safetensors file needs the package safetensors: pip install safetensors") from None
    try:
        return load(file.read())
    except Exception as error:
        raise WeightsFileError(f"it is damaged or not a file of safetensors: {str(error)[:200]}") from error
