"""Pooling of boxes: the level of the pyramid, and RoIAlign as in other frameworks."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign

from models.roi_pool import PyramidRoIAlign

SIDE = 3
IMAGE = (96, 128)


@pytest.fixture
def maps() -> dict[str, Tensor]:
    """Return a pyramid of two images, with an extra level that is not used for pooling."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(2, 4, IMAGE[0] // stride, IMAGE[1] // stride, generator=generator, dtype=torch.float64)
        for name, stride in (("p3", 8), ("p4", 16), ("p5", 32), ("pool", 64))
    }


# canonical size 40: small ones on p3, one on each other level, one across the border, one without a size
BOXES = [
    torch.tensor([[3.0, 5, 21, 16], [10.0, 20, 60, 63], [0.0, 0, 128, 96]], dtype=torch.float64),
    torch.tensor([[90.0, 40, 140, 99], [30.5, 7.25, 30.5, 40], [15.0, 60, 33, 81]], dtype=torch.float64),
]


def read(image_map: Tensor, y: float, x: float) -> Tensor:
    """Interpolate by definition; a location more than a pixel outside is 0, other locations outside read the border."""
    height, width = image_map.shape[-2:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return torch.zeros_like(image_map[:, 0, 0])
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    upper = (1 - (x - x0)) * image_map[:, y0, x0] + (x - x0) * image_map[:, y0, x1]
    lower = (1 - (x - x0)) * image_map[:, y1, x0] + (x - x0) * image_map[:, y1, x1]
    return (1 - (y - y0)) * upper + (y - y0) * lower


def pool_by_hand(maps: dict[str, Tensor], boxes: list[Tensor], canonical: int, *, aligned: bool, points: int) -> Tensor:
    pooled = []
    for image, own in enumerate(boxes):
        for x1, y1, x2, y2 in own.tolist():
            area = (x2 - x1) * (y2 - y1)
            level = min(max(math.floor(4 + math.log2(math.sqrt(area) / canonical)), 3), 5) if area else 3
            stride = 2**level
            left, top = x1 / stride - 0.5 * aligned, y1 / stride - 0.5 * aligned
            bin_h, bin_w = (y2 - y1) / stride / SIDE, (x2 - x1) / stride / SIDE
            if not aligned:  # boxes have at least a pixel of the map
                bin_h, bin_w = max(bin_h, 1 / SIDE), max(bin_w, 1 / SIDE)
            rows, columns = points or math.ceil(bin_h), points or math.ceil(bin_w)
            out = torch.zeros(4, SIDE, SIDE, dtype=torch.float64)
            for i in range(SIDE):
                for j in range(SIDE):
                    for r in range(rows):
                        for c in range(columns):
                            y, x = top + (i + (r + 0.5) / rows) * bin_h, left + (j + (c + 0.5) / columns) * bin_w
                            out[:, i, j] += read(maps[f"p{level}"][image], y, x) / (rows * columns)
            pooled.append(out)
    return torch.stack(pooled)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("points", [0, 1, 2, 3])
def test_pooling_is_the_definition(maps, aligned, points):
    """PaddleDetection's develop branch uses boxes without the shift and adaptive points (0)."""
    pool = PyramidRoIAlign(["p3", "p4", "p5"], SIDE, canonical_size=40, aligned=aligned, sampling_ratio=points)
    expected = pool_by_hand(maps, BOXES, 40, aligned=aligned, points=points)
    torch.testing.assert_close(pool(maps, BOXES, [IMAGE] * 2), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("aligned", "points"), [(True, 0), (False, 2)])
def test_the_default_number_of_points(maps, aligned, points):
    """0 is adaptive, as in mmdetection and detectron2; 2 is torchvision's."""
    found, expected = (
        PyramidRoIAlign(["p3"], SIDE, canonical_size=40, aligned=aligned, sampling_ratio=ratio)(
            maps, BOXES, [IMAGE] * 2
        )
        for ratio in (None, points)
    )
    assert torch.equal(found, expected)


def test_aligned_pooling_samples_the_box():
    """On a map of its pixels' x the result is the x of the bins' centres; without the shift half a pixel more."""
    x = (torch.arange(16, dtype=torch.float64) + 0.5) * 8
    maps = {"p3": x.expand(1, 1, 12, 16)}
    box = [torch.tensor([[16.0, 20, 88, 70]], dtype=torch.float64)]
    found = {
        aligned: PyramidRoIAlign(["p3"], SIDE, canonical_size=224, aligned=aligned)(maps, box, [IMAGE])[0, 0, 1]
        for aligned in (True, False)
    }
    centres = torch.tensor([28.0, 52, 76], dtype=torch.float64)
    torch.testing.assert_close(found[True], centres, rtol=0, atol=1e-9)
    torch.testing.assert_close(found[False], centres + 4, rtol=0, atol=1e-9)


def test_the_default_is_torchvision(maps):
    pool = PyramidRoIAlign(("p3", "p4", "p5"), SIDE, canonical_size=40, aligned=False)
    expected = MultiScaleRoIAlign(["p3", "p4", "p5"], SIDE, 2, canonical_scale=40)(maps, BOXES, [IMAGE] * 2)
    assert torch.equal(pool(maps, BOXES, [IMAGE] * 2), expected)


def test_a_small_first_image_does_not_change_the_strides(maps):
    """33 pixels are padded to 64, so that torchvision takes the map of stride 32 for one of stride 16."""
    pool, theirs = (
        PyramidRoIAlign(["p5"], SIDE, canonical_size=40, aligned=False),
        MultiScaleRoIAlign(["p5"], SIDE, 2, canonical_scale=40),
    )
    expected = pool(maps, BOXES, [IMAGE] * 2)
    small, box = {"p5": torch.rand(1, 4, 2, 2, dtype=torch.float64)}, [BOXES[0][:1]]
    pool(small, box, [(33, 33)]), theirs(small, box, [(33, 33)])
    assert torch.equal(pool(maps, BOXES, [IMAGE] * 2), expected)
    assert not torch.equal(theirs(maps, BOXES, [IMAGE] * 2), expected)


@pytest.mark.parametrize("canonical", [224, 56])
def test_levels_match_torchvision(maps, canonical):
    theirs = MultiScaleRoIAlign(["p3", "p4", "p5"], SIDE, 2, canonical_scale=canonical)
    theirs(maps, BOXES, [IMAGE] * 2)
    ours = PyramidRoIAlign(["p3", "p4", "p5"], SIDE, canonical_size=canonical, aligned=True)
    sides = torch.arange(1, 600) * 1.01
    boxes = [torch.stack([0 * sides, 0 * sides, sides, 1.3 * sides], 1)]
    assert torch.equal(ours.map_levels(boxes), theirs.map_levels(boxes))
    assert set(ours.map_levels(boxes).tolist()) == {0, 1, 2}


def test_images_without_a_box(maps):
    pool = PyramidRoIAlign(["p3", "p4", "p5"], SIDE, canonical_size=40, aligned=True)
    none = torch.zeros(0, 4, dtype=torch.float64)
    assert torch.equal(pool(maps, [none, BOXES[1]], [IMAGE] * 2), pool(maps, [BOXES[0], BOXES[1]], [IMAGE] * 2)[3:])
    assert tuple(pool(maps, [none, none], [IMAGE] * 2).shape) == (0, 4, SIDE, SIDE)


def test_it_has_no_state_and_gradients_reach_every_level(maps):
    pool = PyramidRoIAlign(["p3", "p4", "p5"], SIDE, canonical_size=40, aligned=True)
    assert not pool.state_dict()
    leaves = {name: level.requires_grad_() for name, level in maps.items()}
    pool(leaves, BOXES, [IMAGE] * 2).square().sum().backward()
    assert all(
        leaves[name].grad[image].any() for name, image in (("p3", 0), ("p3", 1), ("p4", 0), ("p4", 1), ("p5", 0))
    )
    assert leaves["pool"].grad is None
