"""Anchors and boxes in float32 where the network computes in half precision.

Under autocast torchvision's are of the type of the maps, and a bfloat16 has steps of 4 pixels from 512 on, 8 from 1024.
"""

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList


class Float32Anchors(AnchorGenerator):
    """torchvision's anchors; those of maps of half precision are float32."""

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Give the anchors of each image; only size, type and device of the maps matter."""
        return super().forward(image_list, [at_least_float32(features[:1, :1]) for features in feature_maps])


class Float32BoxCoder(BoxCoder):
    """torchvision's coder, which decodes in float32 what comes in half precision."""

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        """Move boxes `(N, 4)` by the codes `(N, 4 * n)`."""
        return super().decode_single(at_least_float32(rel_codes), boxes)


def at_least_float32(values: Tensor) -> Tensor:
    """Give half precision as float32, and what is wider as it is."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
