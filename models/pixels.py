"""Images of any number of channels as tensors: uint8, or float32 with black at 0 and white at 1.

`models/pixels.py` is a copy of this file: `models` is in the package without `data`.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from .band_files import NPY, RGB, TIFF, Bands, check_channels, is_for_pillow, load_tifffile, npy_bands, tiff_bands
from .image_files import (
    UnknownPixelsError,
    decoded,
    has_16_bits,
    naming_errors,
    open_bounded,
    orientation,
    range_of,
    to_rgb,
    upright_rgb,
    white_of,
)

PixelRange = Sequence[float] | Sequence[Sequence[float]]


@contextmanager
def open_pixels(path: str | os.PathLike, channels: int = RGB) -> Iterator[Image.Image | Bands]:
    """Open an image file for a detector with a number of channels, and read its header.

    Files for three channels that Pillow can read are images of Pillow, which `to_rgb` converts. All others are `Bands`:

    - NPY: (height, width), (height, width, channels), or (channels, height, width) if the last axis is not `channels`.
    - TIFF with several values per pixel, interleaved or planar, or with one page per channel.
    - All formats of Pillow, with their own channels: 1 of grey images, 3 of colours and palettes, 4 with transparency.

    Raises:
        ImageError: As `open_image`. Also if the number of channels differs.
    """
    with naming_errors(f"image {path}"), open_bounded(path) as file:
        start = file.read(len(NPY))
        file.seek(0)
        if start == NPY:
            yield npy_bands(file, channels)
        elif start[:4] in TIFF and not is_for_pillow(file, channels):
            with load_tifffile().TiffFile(file, name="image") as tiff:
                yield tiff_bands(tiff, channels, os.fstat(file.fileno()).st_size)
        else:
            with decoded(file) as image:
                yield image if channels == RGB else bands_of_pillow(image, channels)


def orientation_of(opened: Image.Image | Bands) -> int:
    """Return the EXIF orientation of an image from 1 to 8."""
    return opened.orientation if isinstance(opened, Bands) else orientation(opened)


def to_tensor(
    opened: Image.Image | Bands,
    values: np.ndarray | None = None,
    pixel_range: PixelRange | None = None,
    *,
    upright: bool = True,
) -> Tensor:
    """Return the pixels of an opened image as a tensor `(channels, height, width)`.

    Images of Pillow and all 8-bit images are uint8. Other images are float32 with black at 0 and white at 1.

    Args:
        opened: Result of `open_pixels`.
        values: Its pixels, if they have been read.
        pixel_range: See `scaled`.
        upright: Whether to rotate the image by its EXIF orientation.

    Raises:
        UnknownPixelsError: As `scaled` and `to_rgb`.
    """
    if isinstance(opened, Image.Image):
        if pixel_range is not None and not is_pair(pixel_range):
            raise UnknownPixelsError("is an image of Pillow, for which data.pixel_range must be one pair [low, high]")
        return pil_to_tensor((upright_rgb if upright else to_rgb)(opened, pixel_range))
    pixels = scaled(opened.read() if values is None else values, opened.white, pixel_range)
    return torch.from_numpy(np.require(turned(pixels, opened.orientation) if upright else pixels, requirements="CW"))


def scaled(values: np.ndarray, white: float | None, pixel_range: PixelRange | None = None) -> np.ndarray:
    """Return uint8 pixels unchanged, and other pixels as float32 with black at 0 and white at 1.

    Args:
        values: Pixels `(channels, height, width)`.
        white: See `Bands`.
        pixel_range: Values of black and white, a pair for all channels or a pair for each; values outside are clipped.
            None uses 0 to `white`, and 0 to 1 for floating-point pixels with such values.

    Raises:
        UnknownPixelsError: If the range is unknown, or if a pixel is not finite.
    """
    if values.dtype == np.uint8 and white == 255:  # a TIFF may use fewer bits
        return values
    pair = None if pixel_range is None or not is_pair(pixel_range) else tuple(pixel_range)
    if pixel_range is None or pair:
        low, high = range_of(values, white, pair)
    else:
        range_of(values, 1.0)  # the check of finite pixels
        low, high = np.asarray(pixel_range, dtype=np.float64).T[:, :, None, None]
    # float32 has 24 bits: not enough for 32-bit integers
    wide = np.float64 if values.dtype.itemsize > 2 and values.dtype != np.float32 else np.float32
    scale = np.asarray(1 / (np.asarray(high) - low), dtype=wide)
    return ((values.astype(wide) - np.asarray(low, dtype=wide)) * scale).clip(0, 1).astype(np.float32)


def is_pair(pixel_range: PixelRange) -> bool:
    """Whether a range is one pair for all channels, not a list of pairs."""
    return not isinstance(pixel_range[0], Sequence)


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Rotate or flip pixels `(channels, height, width)` by an EXIF orientation."""
    if orientation in (2, 4):
        return np.flip(pixels, -1 if orientation == 2 else -2)
    if orientation in (5, 7):
        pixels = pixels.swapaxes(-1, -2)
    quarters = {3: 2, 6: -1, 7: 2, 8: 1}.get(orientation, 0)
    return np.rot90(pixels, quarters, axes=(-2, -1))


def bands_of_pillow(image: Image.Image, channels: int) -> Bands:
    """Describe an image of Pillow with its own channels; palettes become colours.

    Raises:
        UnknownPixelsError: If it has another number of channels, or channels of 16 bits, which Pillow reduces.
    """
    mode = {"1": "L", "P": "RGB", "PA": "RGBA", "La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode)
    check_channels(Image.getmodebands(mode), channels, image.mode)
    is_deep = mode == "F" or mode.startswith("I")
    # Pillow opens TIFF files with one channel of up to 8 bits here
    if image.format != "TIFF" and has_16_bits(image) and not is_deep:
        raise UnknownPixelsError("has 16 bits per channel, of which Pillow reads 8: convert it to TIFF or NPY")

    def read() -> np.ndarray:
        image.load()
        values = np.asarray(image if image.mode == mode else image.convert(mode))
        return np.moveaxis(values[..., None] if values.ndim == 2 else values, -1, 0)

    return Bands(
        image.size,
        np.dtype("uint8" if not is_deep else "float32" if mode == "F" else "int32" if mode == "I" else "uint16"),
        white_of(image) if is_deep else 255.0,
        orientation(image),
        needs_decoding=is_deep,
        has_more_frames=image.format != "MPO" and getattr(image, "is_animated", False),
        format=image.format,
        read=read,
    )
