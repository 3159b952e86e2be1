"""Reading and checking images of any kind, with errors that contain the file name."""

import math
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from .band_files import RGB, Bands
from .image_files import ImageError, has_16_bits
from .pixels import PixelRange, is_pair, open_pixels, orientation_of, to_tensor
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
        pixel_range: See `pixels.scaled`.
        channels: Number of channels of the images, see `pixels.open_pixels`.

    Raises:
        ValueError: If a range is empty or infinite, or if there is not one range or a range for each channel.
    """

    max_aspect_ratio: float | None = None
    pixel_range: PixelRange | None = None
    channels: int = RGB

    def __post_init__(self) -> None:
        if self.pixel_range is None:
            return
        pairs = [self.pixel_range] if is_pair(self.pixel_range) else [*self.pixel_range]
        for pair in pairs:
            if not -math.inf < pair[0] < pair[1] < math.inf:
                raise ValueError(
                    f"data.pixel_range must be two finite numbers [low, high] with low < high, got {[*pair]}"
                )
        if len(pairs) not in (1, self.channels):
            raise ValueError(
                f"data.pixel_range must have one pair, or a pair for each of {self.channels} channels, got {len(pairs)}"
            )


class ImageFacts(NamedTuple):
    """Properties of a decoded image.

    Attributes:
        kind: Number of channels and type of their pixels in the file, as in "4 x uint16".
        values: Least and largest value of a pixel in an image with more than 8 bits; None for other images.
        is_dark_16_bit_colour: Whether no colour of an image with 16 bits per colour is above a quarter of white.
        is_transparent: Whether the image has transparent pixels.
        has_more_frames: Whether the file has more than one frame or page; only the first is read.
    """

    kind: str = ""
    values: tuple[float, float] | None = None
    is_dark_16_bit_colour: bool = False
    is_transparent: bool = False
    has_more_frames: bool = False


_DEFAULTS = ReadOptions()


def read_image(path: Path, size: tuple[int, int] | None = None, options: ReadOptions = _DEFAULTS) -> Tensor:
    """Read an image as a tensor `(channels, height, width)`, uint8 or float32 from 0 to 1, see `pixels.to_tensor`.

    For three channels, greyscale, palette, CMYK, 16-bit and floating-point images are converted to RGB.

    Annotations refer either to the stored pixels or to the image rotated by EXIF, and only the declared size shows
    which. If `size` matches only the stored pixels, EXIF is ignored. Otherwise EXIF is applied.

    Args:
        path: Image file.
        size: Declared (width, height) of the annotation file, None if it has none.
        options: See `ReadOptions`.

    Raises:
        ImageError: If the file is missing, not a regular file, truncated, not an image, or differs from `size`. Also if
            its header has more than `MAX_PIXELS` pixels, a too large aspect ratio, or another number of channels; the
            image is not decoded then. Also if the range of its pixels is unknown.
    """
    with open_pixels(path, options.channels) as opened:
        _check_ratio(path, opened.size, options)
        if isinstance(opened, Image.Image):
            opened.load()
        is_turned = _check_size(path, opened, opened.size, size)
        return to_tensor(opened, pixel_range=options.pixel_range, upright=is_turned)


def check_image(path: Path, size: tuple[int, int] | None = None, options: ReadOptions = _DEFAULTS) -> None:
    """Check an image by its header and its last bytes; decode it only if they do not match.

    It does not find damage in the middle of a JPEG or PNG file, see `inspect_image`. Arguments and errors are those of
    `read_image`.
    """
    with suppress(ImageError), open_pixels(path, options.channels) as opened:
        _check_ratio(path, opened.size, options)
        fits = size is None or tuple(size) == opened.size
        is_deep = opened.needs_decoding if isinstance(opened, Bands) else opened.mode.startswith(_DEEP_MODES)
        if fits and not is_deep and (opened.format is None or _ends_well(path, opened.format)):
            return
    read_image(path, size, options)


def inspect_image(path: Path, size: tuple[int, int] | None = None, options: ReadOptions = _DEFAULTS) -> ImageFacts:
    """Decode an image to find every error that `read_image` raises; arguments and errors are the same."""
    with open_pixels(path, options.channels) as opened:
        if isinstance(opened, Bands):
            return _read_bands(path, opened, size, options)[1]
        _check_ratio(path, opened.size, options)
        stored, is_16_bit = opened.size, has_16_bits(opened)
        opened.draft(None, [max(side // _JPEG_SCALE, 1) for side in stored])  # only JPEG has scales
        opened.load()
        _check_size(path, opened, stored, size)
        pixels = to_tensor(opened, pixel_range=options.pixel_range, upright=False)
        return _facts_of(opened, pixels, is_16_bit)


def read_with_facts(
    path: Path, size: tuple[int, int] | None = None, options: ReadOptions = _DEFAULTS
) -> tuple[Tensor, ImageFacts]:
    """Read an image, and return its facts too; arguments and errors are those of `read_image`."""
    with open_pixels(path, options.channels) as opened:
        if isinstance(opened, Bands):
            return _read_bands(path, opened, size, options)
        _check_ratio(path, opened.size, options)
        is_16_bit = has_16_bits(opened)
        opened.load()
        is_turned = _check_size(path, opened, opened.size, size)
        pixels = to_tensor(opened, pixel_range=options.pixel_range, upright=is_turned)
        return pixels, _facts_of(opened, pixels, is_16_bit)


def _read_bands(
    path: Path, opened: Bands, size: tuple[int, int] | None, options: ReadOptions
) -> tuple[Tensor, ImageFacts]:
    _check_ratio(path, opened.size, options)
    is_turned = _check_size(path, opened, opened.size, size)
    values = opened.read()
    pixels = to_tensor(opened, values, options.pixel_range, upright=is_turned)
    facts = ImageFacts(
        kind=f"{len(values)} x {opened.dtype}",
        values=None if opened.dtype == np.uint8 else (float(values.min()), float(values.max())),
        has_more_frames=opened.has_more_frames,
    )
    return pixels, facts


def _facts_of(image: Image.Image, pixels: Tensor, is_16_bit: bool) -> ImageFacts:
    is_deep = image.mode.startswith(_DEEP_MODES)
    deep = "float32" if image.mode == "F" else "uint16" if image.mode.startswith("I;16") else "int32"
    return ImageFacts(
        kind=f"{len(image.getbands())} x {deep if is_deep else 'uint16' if is_16_bit else 'uint8'}",
        values=_extrema(image) if is_deep else None,
        is_dark_16_bit_colour=is_16_bit and not is_deep and int(pixels.max()) < 64,
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


def upright_size(path: Path, channels: int = RGB) -> tuple[int, int]:
    """Return (width, height) of an image by its header, after rotation by EXIF.

    Raises:
        ImageError: As `open_image`.
    """
    with open_pixels(path, channels) as opened:
        return opened.size[::-1] if orientation_of(opened) >= 5 else opened.size


def _check_size(
    path: Path, opened: Image.Image | Bands, stored: tuple[int, int], declared: tuple[int, int] | None
) -> bool:
    """Compare the size of an image with the declared one, and return whether EXIF is to be applied."""
    turned = stored[::-1] if orientation_of(opened) >= 5 else stored
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
