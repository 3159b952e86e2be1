"""`measure_channels`: mean and standard deviation of each channel of a data set, from some of its images."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

from .annotations import CocoAnnotations
from .image_files import ImageError
from .images import read_image
from .read_ahead import read_ahead

MAX_IMAGES = 256
# A channel with less is constant but for rounding.
_LEAST_STD = 1e-6


class ChannelStatistics(NamedTuple):
    """Statistics of pixels, with black at 0 and white at 1.

    Attributes:
        mean: Mean of each channel.
        std: Standard deviation of each channel.
        images: Number of images that were measured.
    """

    mean: list[float]
    std: list[float]
    images: int


def measure_channels(
    split: CocoAnnotations,
    *,
    skip_unreadable: bool = False,
    progress: Callable[[Iterable], Iterable] = iter,
) -> ChannelStatistics:
    """Measure the pixels of up to `MAX_IMAGES` images, which are evenly spread over a split.

    Args:
        split: Annotations, with the options of reading its images.
        skip_unreadable: Whether to skip images that cannot be read.
        progress: Function that wraps the iteration over the images.

    Raises:
        ImageError: If an image cannot be read.
        ValueError: If no image could be read, or a channel is constant.
    """
    total = len(split.arrays)
    count = min(total, MAX_IMAGES)

    def read(position: int) -> tuple[torch.Tensor, torch.Tensor, int] | None:
        try:
            image = read_image(
                split.image_dir / split.arrays.file_name(position), split.arrays.size(position), split.read_options
            )
        except ImageError:
            if skip_unreadable:
                return None
            raise
        # in float64, channel by channel: squares of float32 would hide a small standard deviation
        sums, squares = [], []
        for channel in image:
            values = channel.double() if channel.is_floating_point() else channel.double() / 255
            sums.append(values.sum())
            squares.append((values * values).sum())
        return torch.stack(sums), torch.stack(squares), image[0].numel()

    found = [*read_ahead(read, progress([total * step // count for step in range(count)]))]
    sums = [part for part in found if part is not None]
    if not sums:
        raise ValueError(f"no image of {split.path} could be read, so data.mean and data.std cannot be measured")
    pixels = sum(part[2] for part in sums)
    mean = torch.stack([part[0] for part in sums]).sum(0) / pixels
    variance = torch.stack([part[1] for part in sums]).sum(0) / pixels - mean**2
    std = variance.clamp(min=0).sqrt()
    constant = (std < _LEAST_STD).nonzero().flatten().tolist()
    if constant:
        raise ValueError(
            f"channel {constant[0] + 1} of {len(std)} has the same value in all of {len(sums)} training images, so its "
            "standard deviation is 0: remove the channel, or set data.mean and data.std"
        )
    return ChannelStatistics(*([_rounded(value) for value in values.tolist()] for values in (mean, std)), len(sums))


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
