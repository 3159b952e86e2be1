"""Reading and checking images of any kind, with errors that contain the file name."""

import math
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from .image_files import ImageError, open_image, orientation, to_rgb, upright_rgb
from .regular_files import open_regular

# Last bytes of a complete file: JPEG's end of image, PNG's IEND chunk with its checksum. Other files are decoded.
_ENDINGS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
# JPEG's smallest scale; decoding at this scale finds the same errors in half of the time.
_JPEG_SCALE = 8
# Modes whose pixels have more than 8 bits; the values decide whether the image can be read.
_DEEP_MODES = ("I", "F")


@dataclass(frozen=True)
class ReadOptions:
    """How images are read, and which of them are errors.

    Attributes:
        max_aspect_ratio: Maximum ratio of the longer side to the shorter side, so that the shorter side has a pixel
            after resizing; None for any ratio.
        pixel_range: See `to_rgb`.

    Raises:
        ValueError: If the range is empty or infinite.
    """

    max_aspect_ratio: float | None = None
    pixel_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.pixel_range is not None and not -math.inf < self.pixel_range[0] < self.pixel_range[1] < math.inf:
            raise ValueError(
                f"data.pixel_range must be two finite numbers [low, high] with low < high, got {[*self.pixel_range]}"
            )


class ImageFacts(NamedTuple):
    """Properties of a decoded image.

    Attributes:
        values: Least and largest value of a pixel in a grey image with more than 8 bits; None for other images.
        is_dark_16_bit_colour: Whether no colour of an image with 16 bits per colour is above a quarter of white.
        is_transparent: Whether the image has transparent pixels.
        has_more_frames: Whether the file has more than one frame or page; only the first is read.
    """

    values: tuple[float, float] | None = None
    is_dark_16_bit_colour: bool = False
    is_transparent: bool = False
    has_more_frames: bool = False


_DEFAULTS = ReadOptions()


def read_image(path: Path, size: tuple[int, int] | None = None, options: ReadOptions = _DEFAULTS) -> Image.Image:
    """Read an image as RGB; greyscale, palette, CMYK, 16-bit and floating-point images are converted.

    Annotations refer either to the stored pixels or to the image rotated by EXIF, and only the declared size shows
    which. If `size` matches only the stored pixels, EXIF is ignored. Otherwise EXIF is applied.

    Args:
        path: Image file.
        size: Declared (width, height) of the annotation file, None if it has none.
        options: See `ReadOptions`.

    Raises:
        ImageError: If the file is missing, not a regular file, truncated, not an image, or differs from `size`. Also if
            its header has more than `MAX_PIXELS` pixels or a too large aspect ratio; the image is not decoded then.
            Also if the range of its pixels is unknown.
    """
    with open_image(path) as image:
        _check_ratio(path, image.size, options)
        image.load()
        is_turned = _check_size(path, image, image.size, size)
        return (upright_rgb if is_turned else to_rgb)(image, options.pixel_range)


def check_image(path: Path, size: tuple[int, int] | None = None, options: ReadOptions = _DEFAULTS) -> None:
    """Check an image by its header and its last bytes; decode it only if they do not match.

    It does not find damage in the middle of a JPEG or PNG file, see `inspect_image`. Arguments and errors are those of
    `read_image`.
    """
    with suppress(ImageError), open_image(path) as image:
        _check_ratio(path, image.size, options)
        fits = size is None or tuple(size) == image.size
        if fits and not image.mode.startswith(_DEEP_MODES) and _ends_well(path, image.format):
            return
    read_image(path, size, options)


def inspect_image(path: Path, size: tuple[int, int] | None = None, options: ReadOptions = _DEFAULTS) -> ImageFacts:
    """Decode an image to find every error that `read_image` raises; arguments and errors are the same."""
    with open_image(path) as image:
        _check_ratio(path, image.size, options)
        stored, is_16_bit = image.size, _has_16_bits(image)
        image.draft(None, [max(side // _JPEG_SCALE, 1) for side in stored])  # only JPEG has scales
        image.load()
        _check_size(path, image, stored, size)
        return _facts_of(image, to_rgb(image, options.pixel_range), is_16_bit)


def read_with_facts(
    path: Path, size: tuple[int, int] | None = None, options: ReadOptions = _DEFAULTS
) -> tuple[Image.Image, ImageFacts]:
    """Read an image, and return its facts too; arguments and errors are those of `read_image`."""
    with open_image(path) as image:
        _check_ratio(path, image.size, options)
        is_16_bit = _has_16_bits(image)
        image.load()
        is_turned = _check_size(path, image, image.size, size)
        rgb = (upright_rgb if is_turned else to_rgb)(image, options.pixel_range)
        return rgb, _facts_of(image, rgb, is_16_bit)


def _has_16_bits(image: Image.Image) -> bool:
    """Return whether a file has 16 bits per value, before the image is loaded; Pillow reduces colours to 8 bits."""
    return "16" in str([tile[3] for tile in image.tile])


def _facts_of(image: Image.Image, rgb: Image.Image, is_16_bit: bool) -> ImageFacts:
    is_deep = image.mode.startswith(_DEEP_MODES)
    return ImageFacts(
        values=_extrema(image) if is_deep else None,
        is_dark_16_bit_colour=is_16_bit and not is_deep and max(high for _, high in rgb.getextrema()) < 64,
        is_transparent=_is_transparent(image),
        has_more_frames=image.format != "MPO" and getattr(image, "is_animated", False),
    )


def _check_ratio(path: Path, size: tuple[int, int], options: ReadOptions) -> None:
    limit = options.max_aspect_ratio
    # in the arithmetic of the resizing, which rounds down
    if limit is not None and int(min(size) * (limit / max(size))) < 1:
        raise ImageError(
            f"image {path} must have a longer side of at most {limit:g} times the shorter side, or the shorter side "
            f"has no pixel after resizing, got {size[0]}x{size[1]}: crop the image, or raise data.max_size"
        )


def upright_size(path: Path) -> tuple[int, int]:
    """Return (width, height) of an image by its header, after rotation by EXIF.

    Raises:
        ImageError: As `open_image`.
    """
    with open_image(path) as image:
        return image.size[::-1] if orientation(image) >= 5 else image.size


def _check_size(path: Path, image: Image.Image, stored: tuple[int, int], declared: tuple[int, int] | None) -> bool:
    """Compare the size of an image with the declared one, and return whether EXIF is to be applied."""
    turned = stored[::-1] if orientation(image) >= 5 else stored
    if declared == stored != turned:
        return False
    if declared is not None and turned != tuple(declared):
        raise ImageError(
            f"image {path} must have {declared[0]}x{declared[1]} pixels as in its annotation file, got "
            f"{turned[0]}x{turned[1]}"
        )
    return True


def _ends_well(path: Path, kind: str | None) -> bool:
    ending = _ENDINGS.get(kind or "")
    if ending is None:
        return False
    with open_regular(path) as file:
        file.seek(-len(ending), os.SEEK_END)
        return file.read() == ending


def _extrema(image: Image.Image) -> tuple[float, float]:
    values = np.asarray(image)  # not Pillow's getextrema, which lacks some 16-bit modes
    return float(values.min()), float(values.max())


def _is_transparent(image: Image.Image) -> bool:
    if not image.has_transparency_data:
        return False
    return image.convert("RGBA").getextrema()[3][0] < 255
