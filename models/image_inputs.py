"""Images of any kind as tensors: files, Pillow images, arrays and tensors."""

import os

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .band_files import RGB, white_of_type
from .image_files import naming_errors, to_8_bits
from .pixels import PixelRange, bands_of_pillow, open_pixels, scaled, to_tensor

ImageInput = str | os.PathLike | Image.Image | np.ndarray | Tensor


def image_tensor(image: ImageInput, pixel_range: PixelRange | None = None, channels: int = RGB) -> Tensor:
    """Convert an image of any kind, see `Predictor`, to a tensor `(channels, H, W)`, uint8 or float32 from 0 to 1.

    Raises:
        ValueError: If the image is missing, corrupt or not supported, or has another number of channels.
    """
    if isinstance(image, Tensor):
        return _checked_tensor(image, channels)
    if isinstance(image, str | os.PathLike):
        with open_pixels(image, channels) as opened:
            return to_tensor(opened, pixel_range=pixel_range)
    if isinstance(image, np.ndarray):
        is_grey_or_alpha = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 4)
        is_pillows = is_grey_or_alpha and image.size and image.dtype.name in ("uint8", "uint16")
        if channels != RGB or not is_pillows:
            return _array_tensor(image, pixel_range, channels)
        # Pillow supports 16 bits only for grey images
        image = Image.fromarray(to_8_bits(image, pixel_range or (0, 65535)) if image.dtype == np.uint16 else image)
    if not isinstance(image, Image.Image):
        raise ValueError(f"an image must be a path, a Pillow image, an array or a tensor, got {type(image).__name__}")
    with naming_errors(f"image {getattr(image, 'filename', '')}".strip()):
        return to_tensor(image if channels == RGB else bands_of_pillow(image, channels), pixel_range=pixel_range)


def _checked_tensor(image: Tensor, channels: int) -> Tensor:
    if (
        image.ndim != 3
        or len(image) != channels
        or not image.numel()
        or image.dtype not in (torch.uint8, torch.float32)
    ):
        raise ValueError(
            f"a tensor must be a uint8 or float32 image of {channels} x height x width, "
            f"got {image.dtype} {list(image.shape)}"
        )
    if image.dtype == torch.float32 and not (image.amin() >= 0 and image.amax() <= 1):
        raise ValueError(
            f"a float32 image must have values from 0 (black) to 1 (white), got {image.amin():g} to {image.amax():g}"
        )
    return image


def _array_tensor(image: np.ndarray, pixel_range: PixelRange | None, channels: int) -> Tensor:
    planes = image[..., None] if image.ndim == 2 and channels == 1 else image
    if planes.ndim != 3 or planes.shape[2] != channels or not image.size or image.dtype.kind not in "buif":
        either = "height x width or " if channels in (1, RGB) else ""
        raise ValueError(
            f"an array must be an image of numbers, {either}height x width x {channels}, "
            f"got {image.dtype} {list(image.shape)}"
        )
    with naming_errors("image"):
        pixels = scaled(np.moveaxis(planes, 2, 0), white_of_type(image.dtype), pixel_range)
    return torch.from_numpy(np.ascontiguousarray(pixels))
