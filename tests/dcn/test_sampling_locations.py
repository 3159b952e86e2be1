"""Samples of every backend at one location: on pixels, between them, at the border, outside, and at infinity or NaN."""

import math

import pytest
import torch

from dcn import BACKENDS, deform_conv2d

HERE = [
    (name, device)
    for device in (("cpu", "cuda") if torch.cuda.is_available() else ("cpu",))
    for name, backend in BACKENDS.items()
    if backend.unavailable_reason(torch.empty(0, device=device)) is None
]


def read(image, y, x, backend, device):
    """Sample an image at one location with a 1x1 kernel of weight 1; the output has one pixel."""
    image = image.to(device, torch.float32 if backend == "triton" else torch.float64)
    height, width = image.shape
    offset = image.new_tensor([y, x]).view(1, 2, 1, 1)
    one = image.new_ones(1, 1, 1, 1)
    return deform_conv2d(image[None, None], offset, one, stride=(height, width), backend=backend).item()


IMAGE = torch.arange(1.0, 13.0, dtype=torch.float64).view(3, 4) ** 2


PLACES = [  # y, x, expected sample
    (0, 0, 1), (2, 3, 144), (1, 2, 49), (2, 0, 81),  # pixels
    (0.5, 0, 13), (0, 0.25, 1.75), (1.5, 2.5, (49 + 64 + 121 + 144) / 4),  # between them
    (-0.25, 0, 0.75), (0, -0.75, 0.25), (2.5, 3, 72), (2, 3.75, 36), (-0.5, -0.5, 0.25), (2.5, 3.5, 36),  # border
    (-1, 0, 0), (0, -1, 0), (3, 0, 0), (0, 4, 0), (-1.5, 1, 0), (1, 4.5, 0), (-7, 2, 0), (2, 99, 0),  # outside
    (1e10, 0, 0), (0, -1e10, 0), (1e300, 1e300, 0),
    (math.inf, 1, 0), (-math.inf, 1, 0), (1, math.inf, 0), (1, -math.inf, 0), (math.inf, -math.inf, 0),
    (math.nan, 1, None), (1, math.nan, None), (math.nan, math.inf, None), (1e10, math.nan, None),  # NaN
]  # fmt: skip


@pytest.mark.parametrize(("backend", "device"), HERE)
def test_samples_at_locations(backend, device):
    found = [(y, x, read(IMAGE, y, x, backend, device)) for y, x, _ in PLACES]
    assert [(y, x, None if math.isnan(value) else value) for y, x, value in found] == PLACES
