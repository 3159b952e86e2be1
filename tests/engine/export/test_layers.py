"""Layers by torchvision's operator are the layers they were made of."""

import pytest
import torch
from torch import nn

from dcn import DeformConv2d
from engine.export.layers import TorchvisionDeformConv2d, with_torchvision_operator


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"modulation": False, "bias": True},
        {"stride": (2, 1), "offset_groups": 2, "kernel_size": (3, 5), "padding": (1, 2)},
        {"groups": 2, "dilation": 2, "mask_scale": 1.0},
    ],
)
def test_same_output(options):
    torch.manual_seed(0)
    layer = DeformConv2d(4, 6, **{"kernel_size": 3, "padding": 1} | options)
    nn.init.normal_(layer.conv_offset.weight, std=0.3)
    model = nn.Sequential(nn.Sequential(layer), nn.ReLU())
    copy = with_torchvision_operator(model)
    assert isinstance(copy[0][0], TorchvisionDeformConv2d)
    assert model[0][0] is layer
    x = torch.randn(2, 4, 9, 13)
    torch.testing.assert_close(copy(x), model(x), rtol=1e-5, atol=1e-5)
