"""Images of any number of channels in the colours of a figure."""

from collections.abc import Sequence

import torch
from torch import Tensor

RGB = 3


def as_rgb(image: Tensor, bands: Sequence[int] | None = None) -> Tensor:
    """Return an image in RGB: its first three channels as red, green and blue, or its first channel as grey.

    Black and white are those of `data.pixel_range`; the contrast is not stretched further.

    Args:
        image: `(channels, H, W)`, uint8, or floating-point from 0 to 1.
        bands: channels to show instead, counted from 1: three, or one for grey.

    Returns:
        `(3, H, W)` uint8; the same tensor if it is one and `bands` is None.
    """
    if bands is None:
        bands = range(1, RGB + 1) if len(image) >= RGB else [1]
    shown = image if [*bands] == [*range(1, len(image) + 1)] else image[[band - 1 for band in bands]]
    if shown.is_floating_point():
        shown = (shown * 255).round().clamp(0, 255).to(torch.uint8)
    return shown if len(shown) == RGB else shown.expand(RGB, -1, -1)
