"""The pixels of NPY files, and of TIFF files that Pillow does not read or reads only in part.

`models/band_files.py` is a copy of this file: `models` is in the package without `data`.
"""

import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np
from PIL import UnidentifiedImageError

from .image_files import MAX_BYTES, UnknownPixelsError, check_pixels, decoded

NPY = b"\x93NUMPY"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
RGB = 3
# TIFF tags and values
_BITS, _PHOTOMETRIC, _ORIENTATION, _SAMPLES, _PLANAR, _EXTRA = 258, 262, 274, 277, 284, 338
_CMYK, _ALPHA = 5, (1, 2)
_UNCOMPRESSED = 1


@dataclass(frozen=True)
class Bands:
    """The header of an image of any number of channels, and how its pixels are read.

    Attributes:
        size: (width, height) as stored.
        dtype: Type of the pixels in the file.
        white: Value of white by the format of the file; None if the format does not define it.
        orientation: EXIF orientation from 1 to 8.
        needs_decoding: Whether errors remain possible after the checks of the header.
        has_more_frames: Whether the file has pages that are not read.
        format: Format of Pillow, whose last bytes show whether the file is whole; None if the header showed it.
        read: Returns the pixels `(channels, height, width)` as stored.
    """

    size: tuple[int, int]
    dtype: np.dtype
    white: float | None
    orientation: int
    needs_decoding: bool
    has_more_frames: bool
    format: str | None
    read: Callable[[], np.ndarray]


def check_channels(found: int, channels: int, what: str = "") -> None:
    """Raise `UnknownPixelsError` unless an image has the number of channels of the detector."""
    if found != channels:
        raise UnknownPixelsError(f"must have {channels} channels (data.channels), got {found}{what and f' ({what})'}")


def npy_bands(file: BinaryIO, channels: int) -> Bands:
    """Read the header of an NPY file: (height, width), or with the channels as the last or the first axis.

    Raises:
        UnknownPixelsError: If it is not an array of numbers of this shape, or has another length than it must have.
    """
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise UnknownPixelsError(f"must be an NPY file of version 1.0 or 2.0, got {version[0]}.{version[1]}")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if dtype.kind not in "buif" or dtype.itemsize > 8 or len(shape) not in (2, 3) or 0 in shape:
        raise UnknownPixelsError(
            f"must be an array of numbers, height x width or height x width x channels, got {dtype} {list(shape)}"
        )
    axis = 2 if len(shape) == 2 or shape[2] == channels or shape[0] != channels else 0
    count, height, width = (1, *shape) if len(shape) == 2 else (shape[axis], *shape[:axis], *shape[axis + 1 :])
    check_channels(count, channels, f"shape {list(shape)}")
    check_pixels((width, height))
    here, there = os.fstat(file.fileno()).st_size - file.tell(), math.prod(shape) * dtype.itemsize
    if here != there:
        raise UnknownPixelsError(f"must have {there} bytes after its header, got {here}: it is truncated or damaged")

    def read() -> np.ndarray:
        file.seek(0)
        values = np.load(file, allow_pickle=False)
        return np.moveaxis(values.reshape(*shape, 1) if len(shape) == 2 else values, axis, 0)

    return _bands((width, height), dtype, white_of_type(dtype), read)


def white_of_type(dtype: np.dtype, bits: int | None = None) -> float | None:
    """Return the value of white: the largest one of unsigned integers of up to 16 bits, 1 of bool; None for others."""
    bits = 8 * dtype.itemsize if bits is None else bits
    return 1.0 if dtype.kind == "b" else float(2**bits - 1) if dtype.kind == "u" and bits <= 16 else None


def _bands(size: tuple[int, int], dtype: np.dtype, white: float | None, read: Callable, **other: Any) -> Bands:
    facts = {"orientation": 1, "needs_decoding": white is None, "has_more_frames": False, "format": None}
    return Bands(size, dtype, white, read=read, **facts | other)


@cache
def load_tifffile() -> ModuleType:
    """Import tifffile, which the package of `models` does not require.

    Raises:
        UnknownPixelsError: If it is not installed.
    """
    try:
        import tifffile
    except ImportError:
        raise UnknownPixelsError("has channels that only tifffile reads: pip install tifffile") from None
    # it logs each oddity of a file; errors are raised too
    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)
    return tifffile


def is_for_pillow(file: BinaryIO, channels: int) -> bool:
    """Whether Pillow reads all channels and bits of a TIFF file."""
    try:
        with decoded(file) as image:
            tags = image.tag_v2
            samples, bits = tags.get(_SAMPLES, 1), max(np.atleast_1d(tags.get(_BITS, 1)))
            if samples == 1:
                return channels in (1, RGB) or image.n_frames != channels
            is_rgba = tags.get(_EXTRA, (0,))[0] in _ALPHA and tags.get(_PLANAR, 1) == 1
            is_converted = tags.get(_PHOTOMETRIC) == _CMYK or is_rgba
            return channels == RGB and samples <= 4 and (bits <= 8 or is_converted)
    except UnidentifiedImageError:
        return False
    finally:
        file.seek(0)


def tiff_bands(tiff: Any, channels: int, length: int) -> Bands:
    """Read the header of a TIFF file whose first page has all channels, or whose pages have one channel each.

    Args:
        tiff: File, opened by tifffile.
        channels: Number of channels of the detector.
        length: Bytes of the file.

    Raises:
        UnknownPixelsError: If channels have another number, size or type, or if pixels are missing in the file.
    """
    first, total = tiff.pages[0], len(tiff.pages)
    has_pages = first.samplesperpixel == 1 and total == channels
    pages = [tiff.pages[index] for index in range(channels if has_pages else 1)]
    check_channels(len(pages) * first.samplesperpixel, channels)
    size = first.imagewidth, first.imagelength
    check_pixels(size)
    shape = (size[1], size[0], first.samplesperpixel)
    planes = (shape[2], *shape[:2])
    for page in pages:
        if page.dtype != first.dtype or page.dtype is None or page.dtype.kind not in "buif" or not math.prod(shape):
            raise UnknownPixelsError("must have channels of one type of numbers")
        if page.imagedepth != 1 or (page.imagewidth, page.imagelength) != size:
            raise UnknownPixelsError("must have channels of one size")
        ends = [*zip(page.dataoffsets, page.databytecounts, strict=True)]
        if len(ends) != math.prod(page.chunked) or any(n <= 0 or start + n > length for start, n in ends):
            raise UnknownPixelsError("is truncated or damaged: some of its pixels are missing")
    if channels * math.prod(size) * first.dtype.itemsize > MAX_BYTES:
        raise UnknownPixelsError(f"must have at most {MAX_BYTES} bytes of pixels, got {channels} x {size[0]}x{size[1]}")

    def read_page(page: Any) -> np.ndarray:
        try:
            values = page.asarray(maxworkers=1)
        except (ImportError, ValueError) as error:
            if "imagecodecs" not in str(error):
                raise
            kind = getattr(page.compression, "name", page.compression)
            needs = "which needs imagecodecs: pip install imagecodecs"
            raise UnknownPixelsError(f"has {kind} compression, {needs}") from None
        is_planar = page.planarconfig == 2 and page.samplesperpixel > 1
        return values.reshape(planes) if is_planar else np.moveaxis(values.reshape(shape), 2, 0)

    def read() -> np.ndarray:
        return np.concatenate([read_page(page) for page in pages])

    tag = first.tags.get(_ORIENTATION)
    return _bands(
        size,
        first.dtype,
        white_of_type(first.dtype, first.bitspersample),
        read,
        orientation=tag.value if tag and tag.value in range(1, 9) else 1,
        needs_decoding=first.dtype.kind not in "bu" or any(page.compression != _UNCOMPRESSED for page in pages),
        has_more_frames=total > len(pages),
    )
