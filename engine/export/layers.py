"""Deformable layers by torchvision's operator, which other programs and formats know."""

import copy

from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from dcn import DeformConv2d


class TorchvisionDeformConv2d(nn.Module):
    """A `DeformConv2d` that computes by `torchvision.ops.deform_conv2d`, with the same parameters.

    The project's "torchvision" backend is an operator of the project around torchvision's, which an exported program
    could not run without the project.

    Args:
        layer: whose parameters are used.
    """

    def __init__(self, layer: DeformConv2d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `x` `(B, C, H, W)` at the places it predicts itself, to `(B, N, Ho, Wo)`."""
        layer = self.layer
        offset, mask = layer.predict(x)
        return deform_conv2d(x, offset, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, mask)


def with_torchvision_operator(model: nn.Module) -> nn.Module:
    """Copy a model, with torchvision's operator in all of its deformable layers."""
    model = copy.deepcopy(model)
    for module in [*model.modules()]:
        for name, child in module.named_children():
            if isinstance(child, DeformConv2d):
                setattr(module, name, TorchvisionDeformConv2d(child))
    return model
