"""The layer with the largest offset."""

import math

import pytest
import torch
from torch import nn

from dcn import DeformConv2d
from engine.insight.diagnosis import largest_offset


class Detector(nn.Module):
    """Two deformable layers, and a head that raises on values that are not finite."""

    def __init__(self) -> None:
        super().__init__()
        self.near = DeformConv2d(3, 4, (3, 2), padding=1)
        self.far = DeformConv2d(4, 4, 3, padding=1)
        nn.init.constant_(self.near.conv_offset.bias[:12], -2.5)
        nn.init.constant_(self.near.conv_offset.bias[12:], 99.0)  # the mask does not count as an offset
        nn.init.constant_(self.far.conv_offset.bias[:18], 4.0)

    def forward(self, images):
        assert not self.training
        found = [self.far(self.near(image[None])) for image in images]
        if not all(map_.isfinite().all() for map_ in found):
            raise ValueError("boxes are not finite")
        return found


IMAGES = [torch.rand(3, 6, 9), torch.rand(3, 8, 5)]


def test_the_farthest_layer_is_named():
    model = Detector().train()
    assert largest_offset(model, IMAGES) == (4.0, "far")
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_offsets_that_are_not_finite_are_the_largest(value):
    model = Detector().eval()
    nn.init.constant_(model.near.conv_offset.bias[3], value)
    assert largest_offset(model, IMAGES)[0] == math.inf
    assert not model.training


def test_all_maps_of_a_head_are_looked_at():
    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Sequential(DeformConv2d(3, 4, 3, padding=1))
            nn.init.constant_(self.head[0].conv_offset.weight, 0.1)

        def forward(self, images):
            return [self.head(scale * images[0][None]) for scale in (1, 9, 2)]

    model = Pyramid()
    image = torch.ones(3, 6, 8)
    largest = largest_offset(model, [image])
    assert largest.layer == "head.0"
    assert largest.pixels == pytest.approx(9 * 27 * 0.1, rel=1e-5)


def test_nothing_to_find():
    assert largest_offset(nn.Identity(), IMAGES) is None
