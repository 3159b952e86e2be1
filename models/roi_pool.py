"""Pooling of box features from a pyramid with RoIAlign, https://arxiv.org/abs/1703.06870."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align
from torchvision.ops.poolers import LevelMapper

CANONICAL_LEVEL = 4  # level of a pyramid from which boxes of the canonical size are pooled, see `resnet_fpn`
ADAPTIVE = 0  # sampling ratio of RoIAlign: `ceil(side)` points per bin and direction
TORCHVISION_SAMPLING_RATIO = 2


class PyramidRoIAlign(nn.Module):
    """RoIAlign on the pyramid level that matches the size of a box.

    torchvision's `MultiScaleRoIAlign` computes the strides of the levels from the first image that it gets. Here they
    are fixed, so that a small first image cannot change them.

    Args:
        levels: Names of consecutive levels in ascending order, from `level_names`; "p3" has stride 2**3.
        output_size: Height and width of the pooled features.
        canonical_size: Side in pixels of boxes that are pooled from "p4"; boxes of half this side are pooled from "p3".
        aligned: Whether boxes are shifted by half a pixel of the map, as in mmdetection and detectron2.
        sampling_ratio: Sampling points per bin and direction; `ADAPTIVE` takes `ceil(side)`. None: `ADAPTIVE` if
            `aligned`, and torchvision's 2 otherwise.
    """

    def __init__(
        self,
        levels: Sequence[str],
        output_size: int,
        *,
        canonical_size: int,
        aligned: bool,
        sampling_ratio: int | None = None,
    ) -> None:
        super().__init__()
        self.strides = {name: 2 ** int(name.removeprefix("p")) for name in levels}
        lowest, highest = (int(name.removeprefix("p")) for name in (levels[0], levels[-1]))
        self.output_size = output_size
        self.canonical_size = canonical_size
        self.aligned = aligned
        default = ADAPTIVE if aligned else TORCHVISION_SAMPLING_RATIO
        self.sampling_ratio = default if sampling_ratio is None else sampling_ratio
        self.map_levels = LevelMapper(lowest, highest, canonical_size, CANONICAL_LEVEL)

    def forward(
        self, features: Mapping[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        """Pool the boxes of a batch.

        Args:
            features: Maps `(B, C, H, W)` by level name; other levels are ignored.
            boxes: Boxes of each image, `(n, 4)`, in pixels of the image.
            image_shapes: Unused; torchvision's pooling computes the strides from it.

        Returns:
            Pooled features, `(N, C, output_size, output_size)`, in the order of images and boxes.
        """
        rois = torch.cat([torch.cat([torch.full_like(own[:, :1], i), own], dim=1) for i, own in enumerate(boxes)])
        levels = self.map_levels(boxes)
        indices = [torch.where(levels == index)[0] for index in range(len(self.strides))]
        pooled = [self.pool_level(features, name, rois[own]) for name, own in zip(self.strides, indices, strict=True)]
        return torch.cat(pooled)[torch.cat(indices).argsort()]

    def pool_level(self, features: Mapping[str, Tensor], name: str, rois: Tensor) -> Tensor:
        """Pool RoIs `(n, 5)`, with the image index first, from one level."""
        scale = 1 / self.strides[name]
        return roi_align(features[name], rois, self.output_size, scale, self.sampling_ratio, self.aligned)
