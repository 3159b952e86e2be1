"""Deformable layers with torchvision's operator, which exporters support."""

import copy

from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from dcn import DeformConv2d


class TorchvisionDeformConv2d(nn.Module):
    """A `DeformConv2d` with the same parameters that calls `torchvision.ops.deform_conv2d`.

    The "torchvision" backend of this project wraps the operator in a custom one, which a program could not run
    without this project.

    Args:
        layer: layer whose parameters are used.
    """

    def __init__(self, layer: DeformConv2d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `x` `(B, C, H, W)` at the predicted sampling locations, to `(B, N, Ho, Wo)`."""
        layer = self.layer
        offset, mask = layer.predict(x)
        return deform_conv2d(x, offset, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, mask)


def with_torchvision_operator(model: nn.Module) -> nn.Module:
    """Return a copy of the model with torchvision's operator in all deformable layers."""
    model = copy.deepcopy(model)
    for module in [*model.modules()]:
        for name, child in module.named_children():
            if isinstance(child, DeformConv2d):
                setattr(module, name, TorchvisionDeformConv2d(child))
    return model
