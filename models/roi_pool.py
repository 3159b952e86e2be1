"""Pooling of box features from a pyramid with torchvision's RoIAlign, https://arxiv.org/abs/1703.06870."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign, roi_align
from torchvision.ops.poolers import LevelMapper

CANONICAL_LEVEL = 4  # level of a pyramid from which boxes of the canonical size are pooled, see `resnet_fpn`


def roi_pool(levels: Sequence[str], output_size: int, *, canonical_size: int, aligned: bool) -> nn.Module:
    """Build the pooling of box features from named pyramid levels.

    Args:
        levels: Names of consecutive levels in ascending order, from `level_names`.
        output_size: Height and width of the pooled features.
        canonical_size: Side in pixels of the boxes that are pooled from "p4".
        aligned: False uses torchvision's `MultiScaleRoIAlign` with 2 x 2 points per bin, True `AlignedRoIPool`.

    Returns:
        A module with the call signature of `AlignedRoIPool`.
    """
    if aligned:
        return AlignedRoIPool(levels, output_size, canonical_size=canonical_size)
    return MultiScaleRoIAlign([*levels], output_size, sampling_ratio=2, canonical_scale=canonical_size)


class AlignedRoIPool(nn.Module):
    """RoIAlign with half-pixel shift and an adaptive number of sampling points, as in other frameworks.

    In mmdetection, detectron2 and PaddleDetection a box is shifted by half a pixel of the map. A bin has `ceil(side)`
    sampling points in each direction instead of 2. torchvision's `MultiScaleRoIAlign` does not shift boxes.

    Args:
        levels: Names of consecutive levels in ascending order; "p3" has stride 2**3.
        output_size: Height and width of the pooled features.
        canonical_size: Side in pixels of boxes that are pooled from "p4"; boxes of half this side are pooled from "p3".
    """

    def __init__(self, levels: Sequence[str], output_size: int, *, canonical_size: int) -> None:
        super().__init__()
        self.strides = {name: 2 ** int(name.removeprefix("p")) for name in levels}
        lowest, highest = (int(name.removeprefix("p")) for name in (levels[0], levels[-1]))
        self.output_size = output_size
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
        pooled = [
            roi_align(
                features[name],
                rois[own],
                self.output_size,
                spatial_scale=1 / stride,
                sampling_ratio=0,  # adaptive
                aligned=True,
            )
            for (name, stride), own in zip(self.strides.items(), indices, strict=True)
        ]
        return torch.cat(pooled)[torch.cat(indices).argsort()]
