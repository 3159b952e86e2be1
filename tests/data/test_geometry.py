"""Random crops, margins and rotations: boxes and masks stay with their objects, and cut objects are removed whole."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision import tv_tensors

from data import TrainTransform
from data.geometry import _Rotation, keep_visible, quarter_turn
from data.ignored_boxes import IgnoredBoxes

FILL = (124, 116, 104)
OPTIONS = ("vertical_flip", "rotate_90", "iou_crop", "crop", "zoom_out")


def sample(height: int, width: int, boxes: list[list[float]]):
    """An image whose boxes are filled with the brightness 100, 101, ..., and its target with labels from 1."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    for index, (left, top, right, bottom) in enumerate(boxes):
        image[:, int(top) : int(bottom), int(left) : int(right)] = 100 + index
    target = {
        "boxes": tv_tensors.BoundingBoxes(
            torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), format="XYXY", canvas_size=(height, width)
        ),
        "labels": torch.arange(len(boxes)) + 1,
        "image_id": 7,
    }
    return tv_tensors.Image(image), target


def seeded(transform, seed: int, image, target):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transform(image, dict(target))


def transform(**options) -> TrainTransform:
    """A transform that does not resize."""
    return TrainTransform(lambda *_: [], FILL, **{"horizontal_flip": 0.0} | options)


def rectangles(draw, height: int, width: int):
    """Draw rectangles of whole pixels that do not overlap: one in each of some vertical strips."""
    count = draw(st.integers(0, 3))
    for index in range(count):
        left, right = index * width // count, (index + 1) * width // count
        x = draw(st.integers(left, right - 1))
        y = draw(st.integers(0, height - 1))
        yield [x, y, draw(st.integers(x + 1, right)), draw(st.integers(y + 1, height))]


@st.composite
def samples(draw):
    height, width = draw(st.integers(3, 70)), draw(st.integers(3, 70))
    return sample(height, width, [*rectangles(draw, height, width)])


@given(
    samples(),
    st.integers(0, 2**32),
    st.sets(st.sampled_from(OPTIONS)),
    st.sampled_from([0.0, 0.5, 3.0]),
    st.sampled_from([0.0, 0.3, 1.0]),
)
def test_boxes_are_exact_without_interpolation(case, seed, chosen, scale, min_visibility):
    """Crops, margins, flips and quarter turns move whole pixels: a box is the extent of its brightness."""
    image, target = case
    target["ignored"] = IgnoredBoxes.of(target["boxes"].as_subclass(torch.Tensor), image.shape[1:])
    options = dict.fromkeys(chosen, 1.0) | {"scale": scale, "min_visibility": min_visibility}
    found, moved = seeded(transform(**options), seed, image, target)
    assert type(found) is type(moved["boxes"]) is torch.Tensor
    assert (found.dtype, moved["boxes"].dtype, moved["image_id"]) == (torch.uint8, torch.float32, 7)
    labels, shown = moved["labels"].tolist(), {}
    for label, box in zip(target["labels"].tolist(), target["boxes"].tolist(), strict=True):
        rows, columns = (found[0] == 99 + label).nonzero().unbind(1)
        if len(rows):
            extent = [columns.min().item(), rows.min().item(), columns.max().item() + 1, rows.max().item() + 1]
            shown[label] = extent, len(rows) / ((box[2] - box[0]) * (box[3] - box[1]))
    for label, box in zip(labels, moved["boxes"].tolist(), strict=True):
        assert box == shown[label][0]
        assert box in moved["ignored"].tolist(), "a crowd region moves like an object with the same box"
    kept_by_centre = "iou_crop" in chosen  # it also removes objects whose centre is outside
    for label, (_, share) in shown.items():
        if share < min_visibility - 1e-6:
            assert label not in labels
        elif not kept_by_centre:
            assert label in labels
    outside = (found != 0).any(dim=0) & ~((found[0] >= 100) & (found[0] == found[1]) & (found[0] == found[2]))
    assert (found[:, outside] == torch.tensor(FILL, dtype=torch.uint8)[:, None]).all(), "margins have the fill colour"


@given(samples(), st.integers(0, 2**32), st.floats(0.5, 180), st.sampled_from([0.0, 0.4]))
def test_boxes_around_rotated_boxes(case, seed, angle, min_visibility):
    """Each corner is turned by trigonometry; the box is the extent of the corners, cut off at the border."""
    image, target = case
    angles = []
    original = _Rotation.make_params
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            _Rotation,
            "make_params",
            lambda *args: (params := original(*args), angles.append(params["angle"]))[0],
        )
        found, moved = seeded(transform(rotate=angle, min_visibility=min_visibility), seed, image, target)
    assert found.shape == image.shape
    assert -angle <= angles[0] <= angle
    height, width = image.shape[1:]
    cos, sin = (function(math.radians(angles[0])) for function in (math.cos, math.sin))
    expected = {}
    for label, (left, top, right, bottom) in zip(target["labels"].tolist(), target["boxes"].tolist(), strict=True):
        corners = [(x - width / 2, y - height / 2) for x in (left, right) for y in (top, bottom)]
        # against the clock, where y points down
        xs = [cos * x + sin * y + width / 2 for x, y in corners]
        ys = [-sin * x + cos * y + height / 2 for x, y in corners]
        whole = (max(xs) - min(xs)) * (max(ys) - min(ys))
        box = [max(min(xs), 0), max(min(ys), 0), min(max(xs), width), min(max(ys), height)]
        sides = box[2] - box[0], box[3] - box[1]
        share = max(sides[0], 0) * max(sides[1], 0) / whole
        if min(sides) > 0.1 and share > min_visibility + 0.01:
            expected[label] = box
        elif min(sides) < 0 or share < min_visibility - 0.01:
            assert label not in moved["labels"].tolist()
    found_boxes = dict(zip(moved["labels"].tolist(), moved["boxes"].tolist(), strict=True))
    for label, box in expected.items():
        assert found_boxes[label] == pytest.approx(box, abs=0.01)


def test_a_rotation_of_deep_images_of_any_channels():
    """Float images from 0 to 1 rotate as their 8-bit values do, without rounding."""
    image, target = sample(30, 41, [[3, 4, 20, 25]])
    image = torch.cat([image, image[:1] // 2, image[:1] + 9])
    found, deep = (
        seeded(TrainTransform(lambda *_: [], (10, 20, 30, 40, 50), horizontal_flip=0.0, rotate=40.0), 5, one, target)[0]
        for one in (image, image / 255)
    )
    assert deep.dtype == torch.float32
    assert (deep * 255 - found).abs().max() < 0.51
    assert len(deep.unique()) > len(found.unique())


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_every_quarter_turn_is_drawn(turns):
    image, target = sample(5, 9, [[2, 1, 4, 2]])
    found = [seeded(quarter_turn(1), seed, image, target)[0] for seed in range(30)]
    assert any(torch.equal(one, torch.rot90(image, turns, (1, 2))) for one in found)
    assert all(torch.equal(seeded(quarter_turn(0), seed, image, target)[0], image) for seed in range(5))


def test_the_range_of_scales_and_margins():
    image, target = sample(100, 80, [[0, 0, 80, 100]])
    sizes = {}
    for name, options in {"scale": {"scale": 1.0}, "zoom": {"zoom_out": 1.0}, "crop": {"crop": 1.0}}.items():
        found = [seeded(transform(**options), seed, image, target)[0].shape[1:] for seed in range(100)]
        sizes[name] = [tuple(one) for one in found]
    factors = [height / 100 for height, _ in sizes["scale"]]
    assert (min(factors), max(factors)) == pytest.approx((0.5, 2), rel=0.06)
    assert sum(factor > 1 for factor in factors) == pytest.approx(50, abs=20), "as often smaller as larger"
    assert all(height / 100 == pytest.approx(width / 80, abs=0.02) for height, width in sizes["scale"])
    assert (min(sizes["zoom"])[0], max(sizes["zoom"])[0]) == pytest.approx((100, 200), abs=5)
    assert (min(sizes["crop"])[0], max(sizes["crop"])[0]) == pytest.approx((50, 100), abs=3)
    assert len({width for _, width in sizes["crop"]}) > 20


@pytest.mark.parametrize("size", [(15, 40), (20, 81), (1, 3)])
def test_small_and_narrow_images_stay_whole(size):
    image, target = sample(*size, [[0, 0, 1, 1]])
    every = dict.fromkeys(("iou_crop", "crop", "zoom_out"), 1.0) | {"scale": 2.0}
    for seed in range(20):
        found, moved = seeded(transform(**every), seed, image, target)
        assert torch.equal(found, image.as_subclass(torch.Tensor))
        assert moved["boxes"].tolist() == [[0, 0, 1, 1]]


def test_images_without_boxes_are_cropped_too():
    image, target = sample(40, 50, [])
    found = [seeded(transform(iou_crop=1.0, crop=1.0), seed, image, target) for seed in range(20)]
    assert len({tuple(one.shape) for one, _ in found}) > 10
    assert all(tuple(moved["boxes"].shape) == (0, 4) for _, moved in found)


def test_a_tiny_object_that_is_not_cut_is_kept():
    _, target = sample(40, 50, [[3, 3, 3.5, 3.5], [1, 1, 30, 30]])
    _, kept = keep_visible(1.0)(None, target)
    assert kept["boxes"].tolist() == target["boxes"].tolist()


@given(samples(), st.integers(0, 2**32))
def test_in_weak_epochs_only_flips_and_quarter_turns_remain(case, seed):
    image, target = case
    weak = {"horizontal_flip": 0.5, "vertical_flip": 0.5, "rotate_90": 0.5}
    strong = {
        "iou_crop": 1.0,
        "crop": 1.0,
        "zoom_out": 1.0,
        "scale": 3.0,
        "rotate": 90.0,
        "large_scale_jitter": (9, (1, 2)),
    }
    strong |= dict.fromkeys(("color_jitter", "grayscale", "blur", "noise", "jpeg"), 1.0)
    expected, boxes = seeded(transform(**weak), seed, image, target)
    found, moved = seeded(lambda *one: transform(**weak, **strong)(*one, strong=False), seed, image, target)
    assert torch.equal(found, expected)
    assert moved["boxes"].tolist() == boxes["boxes"].tolist()
