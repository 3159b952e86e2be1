"""Float32 boxes for networks that compute in half precision; `models/anchors.py` has the anchors."""

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder


class Float32BoxCoder(BoxCoder):
    """torchvision's box coder, which decodes half-precision box deltas in float32."""

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        """Return boxes `(N, 4)` moved by the box deltas `(N, 4 * n)`."""
        return super().decode_single(at_least_float32(rel_codes), boxes)


def at_least_float32(values: Tensor) -> Tensor:
    """Return half-precision values as float32, and wider dtypes unchanged."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
