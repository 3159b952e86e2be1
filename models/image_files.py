"""Opening image files of any content, and their conversion to upright RGB.

`models/image_files.py` is a copy of this file: `models` is in the package without `data`.
"""

import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from .regular_files import NotRegularFileError, open_regular

# Formats that Pillow decodes itself. Other decoders start programs, as for EPS, or open further files.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
# Half a GB as RGB; a header with more pixels is damaged or malicious.
MAX_PIXELS = 178_956_970
# More than any image of `MAX_PIXELS` pixels needs; some decoders read the whole file into memory.
MAX_BYTES = 2**31
# TIFF tag
_BITS_PER_SAMPLE = 258
_NOT_READABLE = "cannot be read; it is truncated, corrupt or not an image"
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
    """An image is missing or invalid; the message contains the file name."""


class MissingImageError(ImageError):
    """An image does not exist."""


class UnknownPixelsError(ValueError):
    """The pixels of an image cannot be used; the message continues after the name of the image."""


@contextmanager
def open_image(path: str | os.PathLike) -> Iterator[Image.Image]:
    """Open an image file and read its header.

    An error that is raised within the context, for example by the decoder, becomes an `ImageError` as well.

    Raises:
        ImageError: If the file is missing, not a regular file, truncated or not an image of `FORMATS`. Also if it has
            more than `MAX_BYTES` bytes, or its header more than `MAX_PIXELS` pixels; the image is not decoded then.
    """
    name = f"image {path}"
    with naming_errors(name), open_bounded(path) as file, decoded(file) as image:
        yield image


@contextmanager
def open_bounded(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a regular file of at most `MAX_BYTES` bytes.

    Raises:
        OSError: If the file cannot be opened.
        UnknownPixelsError: If it has more bytes.
    """
    with open_regular(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > MAX_BYTES:
            raise UnknownPixelsError(f"must have at most {MAX_BYTES} bytes, got {size}")
        yield file


@contextmanager
def decoded(file: BinaryIO) -> Iterator[Image.Image]:
    """Open an image with Pillow and check the number of pixels in its header, see `open_image`."""
    # with its name, Pillow would map some files into memory, and a file that shrinks would kill the process
    with Image.open(file, formats=_formats()) as image:
        check_pixels(image.size)
        yield image


def check_pixels(size: tuple[int, int]) -> None:
    """Raise `UnknownPixelsError` if an image of (width, height) has more than `MAX_PIXELS` pixels."""
    if size[0] * size[1] > MAX_PIXELS:
        raise UnknownPixelsError(f"must have at most {MAX_PIXELS} pixels, got {size[0]}x{size[1]}")


@contextmanager
def naming_errors(name: str) -> Iterator[None]:
    """Convert the errors of a file and of Pillow to an `ImageError` with the name of the image."""
    try:
        yield
    except ImageError:
        raise
    except UnknownPixelsError as error:
        raise ImageError(f"{name} {error}") from None
    except FileNotFoundError:
        raise MissingImageError(f"{name} does not exist") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} must have at most {MAX_PIXELS} pixels: {error}") from None
    except UnidentifiedImageError:
        raise ImageError(f"{name} {_NOT_READABLE}: its content has none of the formats {', '.join(FORMATS)}") from None
    except NotRegularFileError as error:
        raise ImageError(f"{name} {error.strerror}") from None
    except OSError as error:
        if error.strerror:  # of the system, not of Pillow
            raise ImageError(f"{name} cannot be read: {error.strerror}") from None
        raise ImageError(f"{name} {_NOT_READABLE}: {error}") from None
    except Exception as error:  # Pillow's decoders raise errors of any type for damaged files
        raise ImageError(f"{name} {_NOT_READABLE}: {str(error) or type(error).__name__}") from None


@cache
def _formats() -> list[str]:
    """Return the formats that this Pillow knows; a name that it does not know would be an error."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def image_suffixes() -> tuple[str, ...]:
    """Return the suffixes of files that `open_image` can open, in lower case."""
    _formats()
    # MPO is JPEG with further images behind the first
    return tuple(sorted(end for end, name in Image.registered_extensions().items() if name in (*_formats(), "MPO")))


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image from 1 to 8; 1, as stored, if EXIF has no valid one."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # EXIF data may contain anything, and an image is complete without them
        return 1
    return found if isinstance(found, int) and found in _TURNS else 1


def upright_rgb(image: Image.Image, pixel_range: tuple[float, float] | None = None) -> Image.Image:
    """Convert an image to RGB, see `to_rgb`, and rotate it according to its EXIF orientation.

    Other than `ImageOps.exif_transpose`, it does not write the other EXIF data, which may contain invalid entries.
    """
    image.load()  # its errors are not errors of EXIF data
    turn = _TURNS.get(orientation(image))
    image = to_rgb(image, pixel_range)  # first, since a rotated image does not have the format of its file
    return image if turn is None else image.transpose(turn)


def to_rgb(image: Image.Image, pixel_range: tuple[float, float] | None = None) -> Image.Image:
    """Convert an image of any mode to RGB.

    Args:
        image: Image.
        pixel_range: Values of black and white in grey images with more than 8 bits; values outside are clipped. None
            uses the whole range of 16-bit images, and 0 to 1 for floating-point images with such values.

    Raises:
        UnknownPixelsError: If the range of the pixels is unknown, if pixels are not finite, or if Pillow cannot convert
            the mode.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        # not Pillow's own conversion, which clips at 255 instead of scaling
        image = Image.fromarray(to_8_bits(values, range_of(values, white_of(image), pixel_range)))
    try:
        return image.convert("RGB")
    except ValueError:
        raise UnknownPixelsError(f"must have colours that can be converted to RGB, got {image.mode}") from None


def to_8_bits(values: np.ndarray, pixel_range: tuple[float, float]) -> np.ndarray:
    """Scale the values of black and white to 0 and 255, clip and round; return uint8."""
    low, high = pixel_range
    return ((values.astype(np.float32) - low) * (255 / (high - low))).clip(0, 255).round().astype(np.uint8)


def range_of(
    values: np.ndarray, white: float | None, pixel_range: tuple[float, float] | None = None
) -> tuple[float, float]:
    """Return the values of black and white in an image.

    Args:
        values: Pixels.
        white: Value of white by the format of the file; None if the format does not define it.
        pixel_range: Values of black and white, if the user has set them.

    Raises:
        UnknownPixelsError: If a pixel is not finite, or the range is unknown: without `white` and `pixel_range`, only
            floating-point pixels from 0 to 1 have a range.
    """
    least, largest = float(values.min()), float(values.max())
    if not (math.isfinite(least) and math.isfinite(largest)):
        raise UnknownPixelsError("must have finite pixels, got NaN or infinity")
    if pixel_range is not None:
        return pixel_range
    if white is not None:
        return 0.0, white
    is_float = values.dtype.kind == "f"
    if is_float and least >= 0 and largest <= 1:
        return 0.0, 1.0
    kind = "floating-point pixels" if is_float else f"{8 * values.dtype.itemsize}-bit integer pixels"
    raise UnknownPixelsError(
        f"has {kind} from {least:g} to {largest:g}, whose range is unknown: set data.pixel_range to the values of "
        "black and white, for example [0, 255]"
    )


def white_of(image: Image.Image) -> float | None:
    """Return the value of white in a grey image of Pillow with more than 8 bits; None if it is unknown."""
    # Pillow scales the values of PNM files, and their 32-bit mode holds 16 bits
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return float(2 ** _bits_of(image) - 1)
    return None


def _bits_of(image: Image.Image) -> int:
    """Return the bits per pixel of an image with 16 bits in memory; TIFF has files with fewer."""
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))
    return bits[0] if isinstance(bits, tuple) and len(bits) == 1 and bits[0] in range(9, 16) else 16


def has_16_bits(image: Image.Image) -> bool:
    """Return whether a file has 16 bits per value, before the image is loaded; Pillow reduces colours to 8 bits."""
    return "16" in str([tile[3] for tile in image.tile])


def silence_pillow() -> None:
    """Ignore Pillow's warnings about details of files that it reads nevertheless, such as invalid metadata."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


# Pillow warns above this bound and raises above twice the bound, also for images embedded in a file. Its default warns
# about valid images.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
# Pillow must raise on truncated files; another library may have switched that off.
ImageFile.LOAD_TRUNCATED_IMAGES = False
silence_pillow()
