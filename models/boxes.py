"""Float32 anchors and boxes for networks that compute in half precision.

Under autocast torchvision's anchors and boxes have the dtype of the feature maps. The steps of bfloat16 are 4 pixels
from 512 on, and 8 from 1024 on.
"""

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList


class Float32Anchors(AnchorGenerator):
    """torchvision's anchor generator, with float32 anchors for half-precision maps."""

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Return the anchors of each image; only size, dtype and device of the maps matter."""
        return super().forward(image_list, [at_least_float32(features[:1, :1]) for features in feature_maps])


class Float32BoxCoder(BoxCoder):
    """torchvision's box coder, which decodes half-precision box deltas in float32."""

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        """Return boxes `(N, 4)` moved by the box deltas `(N, 4 * n)`."""
        return super().decode_single(at_least_float32(rel_codes), boxes)


def at_least_float32(values: Tensor) -> Tensor:
    """Return half-precision values as float32, and wider dtypes unchanged."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
