"""What every backend reads at one place: on pixels, between them, at the border, outside, and nowhere."""

import math

import pytest
import torch

from dcn import BACKENDS, deform_conv2d

CPU_BACKENDS = [name for name, backend in BACKENDS.items() if backend.can_run(torch.empty(0)) is None]
NAN_BACKENDS = [name for name in CPU_BACKENDS if name != "torchvision"]  # torchvision reads 0 at a place that is NaN


def read(image, y, x, backend):
    """Read one place of an image, by a 1x1 kernel of weight 1; the output has one pixel."""
    height, width = image.shape
    offset = torch.tensor([y, x], dtype=image.dtype).view(1, 2, 1, 1)
    one = torch.ones(1, 1, 1, 1, dtype=image.dtype)
    return deform_conv2d(image[None, None], offset, one, stride=(height, width), backend=backend).item()


IMAGE = torch.arange(1.0, 13.0, dtype=torch.float64).view(3, 4) ** 2


@pytest.mark.parametrize(
    ("y", "x", "expected"),
    [
        (0, 0, 1), (2, 3, 144), (1, 2, 49), (2, 0, 81),  # pixels
        (0.5, 0, 13), (0, 0.25, 1.75), (1.5, 2.5, (49 + 64 + 121 + 144) / 4),  # between them
        (-0.25, 0, 0.75), (0, -0.75, 0.25), (2.5, 3, 72), (2, 3.75, 36), (-0.5, -0.5, 0.25), (2.5, 3.5, 36),  # border
        (-1, 0, 0), (0, -1, 0), (3, 0, 0), (0, 4, 0), (-1.5, 1, 0), (1, 4.5, 0), (-7, 2, 0), (2, 99, 0),  # outside
        (1e10, 0, 0), (0, -1e10, 0), (1e300, 1e300, 0),
        (math.inf, 1, 0), (-math.inf, 1, 0), (1, math.inf, 0), (1, -math.inf, 0), (math.inf, -math.inf, 0),
    ],
)  # fmt: skip
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_reads_the_place(backend, y, x, expected):
    assert read(IMAGE, y, x, backend) == expected


@pytest.mark.parametrize(("y", "x"), [(math.nan, 1), (1, math.nan), (math.nan, math.inf), (1e10, math.nan)])
@pytest.mark.parametrize("backend", NAN_BACKENDS)
def test_a_place_that_is_nan_gives_nan(backend, y, x):
    assert math.isnan(read(IMAGE, y, x, backend))
