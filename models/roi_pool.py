"""Cuts the features of boxes out of a pyramid, by torchvision's RoIAlign, https://arxiv.org/abs/1703.06870."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign, roi_align
from torchvision.ops.poolers import LevelMapper

# Of level l of a pyramid, see `resnet_fpn`.
CANONICAL_LEVEL = 4


def roi_pool(levels: Sequence[str], output_size: int, *, canonical_size: int, aligned: bool) -> nn.Module:
    """Build the pooling of boxes from the maps "p2".."p5" that are named.

    Args:
        levels: names of neighbouring maps in rising order, of `level_names`.
        output_size: side of what is cut out of the maps.
        canonical_size: side in pixels of the boxes that are pooled from "p4".
        aligned: False is torchvision's `MultiScaleRoIAlign` with 2 x 2 points in a bin, True an `AlignedRoIPool`.

    Returns:
        A module that is called as `AlignedRoIPool`.
    """
    if aligned:
        return AlignedRoIPool(levels, output_size, canonical_size=canonical_size)
    return MultiScaleRoIAlign([*levels], output_size, sampling_ratio=2, canonical_scale=canonical_size)


class AlignedRoIPool(nn.Module):
    """RoIAlign with the pixels' centres at half numbers, and as many points in a bin as it is pixels long.

    mmdetection, detectron2 and PaddleDetection pool so: a box is shifted by half a pixel of the map, where
    `MultiScaleRoIAlign` does not shift it, and a bin reads `ceil(its side)` points in each direction in place of 2.

    Args:
        levels: names of neighbouring maps in rising order: "p3" is the one with stride 2**3.
        output_size: side of what is cut out.
        canonical_size: side in pixels of the boxes that are pooled from "p4"; half the side is pooled one level lower.
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
            features: maps `(B, C, H, W)` by name, those of other names are left out.
            boxes: one `(n, 4)` for each image, in pixels of the image.
            image_shapes: not needed here; torchvision's pooling takes the strides from them.

        Returns:
            `(N, C, output_size, output_size)`, image after image.
        """
        rois = torch.cat([torch.cat([torch.full_like(own[:, :1], i), own], dim=1) for i, own in enumerate(boxes)])
        levels = self.map_levels(boxes)
        places = [torch.where(levels == index)[0] for index in range(len(self.strides))]
        pooled = [
            roi_align(
                features[name],
                rois[place],
                self.output_size,
                spatial_scale=1 / stride,
                sampling_ratio=0,  # as many as it takes
                aligned=True,
            )
            for (name, stride), place in zip(self.strides.items(), places, strict=True)
        ]
        return torch.cat(pooled)[torch.cat(places).argsort()]
