"""Anchors of the detectors, float32 also for networks that compute in half precision.

Under autocast torchvision's anchors have the dtype of the feature maps. The steps of bfloat16 are 4 pixels from 512 on,
and 8 from 1024 on.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from .boxes import at_least_float32
from .resnet import check_name

Levels = Sequence[Sequence[float]]


class Float32Anchors(AnchorGenerator):
    """torchvision's anchor generator, with float32 anchors for half-precision maps.

    Sides are rounded to whole pixels. The stride of a level is the image size, divided by the size of the map and
    rounded down.
    """

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Return the anchors of each image; only size, dtype and device of the maps matter."""
        return super().forward(image_list, [at_least_float32(features[:1, :1]) for features in feature_maps])


class ExactAnchors(Float32Anchors):
    """Anchors of exact sizes at fixed strides, as in detectron2, mmdetection and PaddleDetection.

    Location (i, j) of a level has its anchors around pixel (i * stride, j * stride). The levels P6 and P7 of an image
    of 800 pixels have 13 and 7 rows. Their strides in torchvision are 61 and 114 instead of 64 and 128.

    Args:
        sizes: Anchor sizes of each level in pixels.
        aspect_ratios: Aspect ratios of each level, height over width.
        strides: Stride of each level in pixels.
    """

    def __init__(self, sizes: Levels, aspect_ratios: Levels, strides: Iterable[int]) -> None:
        super().__init__(sizes, aspect_ratios)
        self.strides = [*strides]

    def generate_anchors(
        self,
        scales: Sequence[float],
        aspect_ratios: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Return the anchors of a location at pixel (0, 0), ordered by aspect ratio, then by size, `(n, 4)`."""
        roots = torch.tensor(aspect_ratios, dtype=torch.float64, device=device).sqrt()
        sizes = torch.tensor(scales, dtype=torch.float64, device=device)
        sides = torch.stack([torch.outer(1 / roots, sizes), torch.outer(roots, sizes)], 2).flatten(0, 1)
        return torch.cat([-sides, sides], 1).div(2).to(dtype)

    def grid_anchors(self, grid_sizes: list[list[int]], strides: list[list[Tensor]]) -> list[Tensor]:
        """Return the anchors of each level; the strides that torchvision computes are unused."""
        return super().grid_anchors(grid_sizes, [[stride, stride] for stride in self.strides])


def _whole(sizes: Levels) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(size) for size in level) for level in sizes)


# kinds of anchors by name; arguments are the sizes and aspect ratios of each level, and their strides
ANCHORS: dict[str, Callable[[Levels, Levels, Iterable[int]], Float32Anchors]] = {
    "exact": ExactAnchors,
    "torchvision": lambda sizes, aspect_ratios, strides: Float32Anchors(_whole(sizes), aspect_ratios),
}


def make_anchors(kind: str, sizes: Levels, aspect_ratios: Sequence[float], strides: Iterable[int]) -> Float32Anchors:
    """Build the anchor generator of a detector.

    Args:
        kind: Name in `ANCHORS`.
        sizes: Anchor sizes of each level in pixels.
        aspect_ratios: Aspect ratios of every level, height over width.
        strides: Stride of each level in pixels.

    Raises:
        ValueError: If the kind is unknown.
    """
    check_name("anchors", kind, [*ANCHORS])
    levels = tuple(tuple(level) for level in sizes)
    return ANCHORS[kind](levels, (tuple(aspect_ratios),) * len(levels), strides)
