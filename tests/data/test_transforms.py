"""Boxes move with the objects, and images are scaled as the detectors scale them."""

from colorsys import rgb_to_hsv
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision import tv_tensors
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms.v2.functional import to_pil_image

from data import TrainTransform, eval_transform
from models.resize import Resize

IMAGENET_MEAN = (0.485, 0.456, 0.406)
FILL = (124, 116, 104)


def train_transform(*, min_size: int | list[int], max_size: int, **options) -> TrainTransform:
    sizes = (min_size,) if isinstance(min_size, int) else tuple(min_size)
    return TrainTransform(Resize("shortest", sizes, max_size).train_steps, FILL, **options)


def target_of(boxes: list[list[float]], height: int, width: int) -> dict:
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
        "labels": torch.arange(len(boxes)) + 3,
        "image_id": 9,
    }


@st.composite
def planted(draw, most: int = 24):
    """Return a dark image with one bright rectangle, and its target."""
    width, height = draw(st.integers(4, most)), draw(st.integers(4, most))
    x = draw(st.integers(0, width - 1))
    y = draw(st.integers(0, height - 1))
    w = draw(st.integers(1, width - x))
    h = draw(st.integers(1, height - y))
    pixels = torch.zeros(3, height, width, dtype=torch.uint8)
    pixels[:, y : y + h, x : x + w] = 255
    return to_pil_image(pixels), pixels, target_of([[x, y, x + w, y + h]], height, width)


def as_it_is(picture: torch.Tensor, **options):
    """Return a training transform that keeps the size of an image."""
    return train_transform(min_size=min(picture.shape[1:]), max_size=max(picture.shape[1:]), **options)


def seeded(transform, seed: int, *sample):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transform(*sample)


def bright_box(image: torch.Tensor, least: int = 0) -> list[float]:
    rows, columns = (image[0] > least).nonzero().unbind(1)
    return [columns.min().item(), rows.min().item(), columns.max().item() + 1, rows.max().item() + 1]


def check_boxes(image: torch.Tensor, target: dict) -> None:
    """Check that every box has a label and a size, and is inside of the image."""
    boxes, (height, width) = target["boxes"], image.shape[1:]
    assert len(boxes) == len(target["labels"])
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert boxes.min() >= 0
    assert boxes[:, [0, 2]].max() <= width
    assert boxes[:, [1, 3]].max() <= height


@given(planted())
def test_flip_moves_boxes_with_the_image(case):
    picture, pixels, target = case
    image, moved = as_it_is(pixels, horizontal_flip=1)(picture, target)
    assert torch.equal(image, pixels.flip(2))
    assert moved["boxes"].tolist() == [bright_box(image)]
    assert (moved["labels"].tolist(), moved["image_id"]) == ([3], 9)


@given(planted(), st.integers(0, 2**32))
def test_chance_of_a_flip_keeps_boxes_and_image_together(case, seed):
    picture, pixels, target = case
    image, moved = seeded(as_it_is(pixels, horizontal_flip=0.5), seed, picture, target)
    assert moved["boxes"].tolist() == [bright_box(image)]


@given(planted())
@pytest.mark.parametrize("name", ["train", "eval"])
def test_no_other_change(name, case):
    picture, pixels, target = case
    image, same = (as_it_is(pixels, horizontal_flip=0) if name == "train" else eval_transform())(picture, target)
    assert torch.equal(image, pixels)
    assert same["boxes"].tolist() == target["boxes"].tolist()


@pytest.mark.parametrize(
    "transform",
    [
        train_transform(min_size=8, max_size=16),
        train_transform(min_size=8, max_size=16, color_jitter=0.5),
        train_transform(min_size=8, max_size=16, large_scale_jitter=(16, (0.5, 2.0))),
        eval_transform(),
    ],
    ids=["usual", "colours", "large-scale jitter", "eval"],
)
def test_plain_tensors_come_out(transform):
    image, target = transform(to_pil_image(torch.zeros(3, 4, 6, dtype=torch.uint8)), target_of([], 4, 6))
    assert type(image) is type(target["boxes"]) is torch.Tensor
    assert image.dtype == torch.uint8
    assert (target["boxes"].dtype, tuple(target["boxes"].shape)) == (torch.float32, (0, 4))


def test_flip_is_a_probability():
    picture, flipped = to_pil_image(torch.tensor([[[0, 255]]], dtype=torch.uint8).expand(3, 1, 2)), 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(400):
            flipped += train_transform(min_size=1, max_size=2, horizontal_flip=0.25)(picture)[0, 0, 0].item() == 255
    assert 70 < flipped < 130


@given(
    st.tuples(st.integers(12, 90), st.integers(12, 90)), st.integers(8, 80), st.integers(10, 20), st.integers(0, 2**32)
)
def test_scaling_is_that_of_the_detectors_in_evaluation(size, min_size, max_tenths, seed):
    (height, width), max_size = size, min_size * max_tenths // 10
    pixels = torch.randint(256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    box = [width / 3, height / 5, width / 2, height]
    transform = train_transform(min_size=min_size, max_size=max_size, horizontal_flip=0)
    image, target = transform(to_pil_image(pixels), target_of([box], height, width))
    detector = GeneralizedRCNNTransform(min_size, max_size, [0.0] * 3, [1.0] * 3, size_divisible=1).eval()
    expected, (boxes,) = detector([pixels / 255], [{"boxes": torch.tensor([box])}])
    scaled = expected.tensors[0]
    assert max(abs(a - b) for a, b in zip(image.shape, scaled.shape, strict=True)) <= 1
    assert max(image.shape[1:]) <= max_size
    assert min(image.shape[1:]) <= min_size
    if image.shape == scaled.shape:
        # torchvision works in whole numbers and rounds twice, vertically and horizontally
        assert (image / 255 - scaled).abs().max() < 1.5 / 255
        assert (image / 255 - scaled).abs().mean() < 0.6 / 255
        assert (target["boxes"] - boxes["boxes"]).abs().max() < 1e-3


@given(planted(), st.integers(6, 40), st.integers(0, 2**32))
def test_boxes_are_scaled_with_the_image(case, min_size, seed):
    picture, pixels, target = case
    transform = train_transform(min_size=[min_size, 2 * min_size], max_size=3 * min_size)
    image, moved = seeded(transform, seed, picture, target)
    check_boxes(image, moved)
    assert moved["labels"].tolist() == [3]
    # a border has half the brightness, within a pixel, or two if the rectangle is drawn smaller
    scale = max(image.shape[1] / pixels.shape[1], image.shape[2] / pixels.shape[2])
    if scale > 1:
        assert moved["boxes"][0].tolist() == pytest.approx(bright_box(image, 127), abs=1.01)


def test_each_of_several_sizes_is_drawn():
    picture = to_pil_image(torch.zeros(3, 20, 30, dtype=torch.uint8))
    transform = train_transform(min_size=[10, 14, 18], max_size=100)
    assert {seeded(transform, seed, picture).shape[1] for seed in range(30)} == {10, 14, 18}


BOXES = st.lists(
    st.tuples(*[st.floats(0, 0.99), st.floats(0.002, 1)] * 2).map(lambda v: (v[0], v[2], v[1], v[3])), max_size=4
)


@given(
    size=st.tuples(st.integers(30, 250), st.integers(30, 250)),
    boxes=BOXES,
    jitter=st.one_of(st.none(), st.just((48, (0.2, 2.0)))),
    seed=st.integers(0, 2**32),
)
def test_boxes_stay_inside_with_a_size(size, boxes, jitter, seed):
    height, width = size
    whole = [[0, 0, width, height]]  # at the right border rounding could exceed the image
    inside = [[x * width, y * height, min(x + w, 1) * width, min(y + h, 1) * height] for x, y, w, h in boxes]
    picture = to_pil_image(torch.zeros(3, height, width, dtype=torch.uint8))
    transform = train_transform(min_size=[37, 53], max_size=91, large_scale_jitter=jitter)
    image, target = seeded(transform, seed, picture, target_of(whole + inside, height, width))
    check_boxes(image, target)
    assert 3 in target["labels"], "a box that covers everything is kept"
    assert jitter or len(target["labels"]) == 1 + len(inside)


@given(planted(most=60), st.integers(0, 2**32))
def test_large_scale_jitter_moves_boxes_with_the_image(case, seed):
    picture, _, target = case
    transform = train_transform(min_size=1, max_size=1, horizontal_flip=0.5, large_scale_jitter=(50, (0.4, 2.0)))
    image, moved = seeded(transform, seed, picture, target)
    assert tuple(image.shape) == (3, 50, 50)
    bright = image[0] > 127  # a border has half the brightness; the padding is darker
    if not len(moved["boxes"]):
        assert bright.sum() <= 50, "at most a line of it remains"
        assert len(moved["labels"]) == 0
        return
    assert moved["labels"].tolist() == [3]
    check_boxes(image, moved)
    left, top, right, bottom = moved["boxes"][0].tolist()
    if min(right - left, bottom - top) > 4:  # smaller rectangles become dark
        # where a crop cuts the rectangle next to its border, a corner of up to a quarter of a pixel's size is dark
        room = max(1.01, 50 * 2 / max(picture.size) / 4)
        assert [left, top, right, bottom] == pytest.approx(bright_box(image, 127), abs=room)
    bright[max(int(top) - 1, 0) : int(bottom) + 2, max(int(left) - 1, 0) : int(right) + 2] = False
    assert not bright.any()


def test_large_scale_jitter_fills_with_the_mean_and_draws_every_scale():
    picture = to_pil_image(torch.full((3, 40, 30), 255, dtype=torch.uint8))
    transform = train_transform(min_size=1, max_size=1, large_scale_jitter=(40, (0.5, 1.5)))
    fill = torch.tensor([round(255 * mean) for mean in IMAGENET_MEAN], dtype=torch.uint8)[:, None, None]
    heights, places = [], set()
    for seed in range(80):
        image, target = seeded(transform, seed, picture, target_of([[0, 0, 30, 40]], 40, 30))
        left, top, right, bottom = target["boxes"][0].round().int().tolist()
        heights.append(bottom - top)
        places.add((left, top))
        outside = torch.ones(40, 40, dtype=torch.bool)
        outside[top:bottom, left:right] = False
        assert torch.equal(image[:, outside], fill[:, 0].expand(3, int(outside.sum())))
        assert (image[:, ~outside] == 255).all()
    assert (min(heights), max(heights)) == pytest.approx((20, 40), abs=2)
    assert len(places) > 20, "the position is random"


def test_a_cropped_box_is_removed_with_its_label():
    # at twice the size only a quarter of the image is visible
    picture = to_pil_image(torch.zeros(3, 40, 40, dtype=torch.uint8))
    transform = train_transform(min_size=1, max_size=1, horizontal_flip=0, large_scale_jitter=(40, (2.0, 2.0)))
    corners = [[0, 0, 4, 4], [36, 0, 40, 4], [0, 36, 4, 40], [36, 36, 40, 40]]
    left = [seeded(transform, seed, picture, target_of(corners, 40, 40))[1] for seed in range(80)]
    assert {len(target["labels"]) for target in left} == {0, 1}
    assert {*torch.cat([target["labels"] for target in left]).tolist()} == {3, 4, 5, 6}


@given(st.floats(0.05, 1), st.integers(0, 2**32))
def test_colours_change_within_bounds_and_nothing_else(strength, seed):
    pixels = torch.randint(60, 200, (3, 6, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    grey = torch.full((3, 6, 9), 100, dtype=torch.uint8)  # the image has neither contrast nor colour
    target = target_of([[1, 2, 5, 6]], 6, 9)
    transform = as_it_is(pixels, horizontal_flip=0, color_jitter=strength)
    image, same = seeded(transform, seed, to_pil_image(pixels), target)
    assert (image.dtype, image.shape) == (torch.uint8, pixels.shape)
    assert same["boxes"].tolist() == [[1, 2, 5, 6]]
    changed = seeded(transform, seed, to_pil_image(grey), target)[0].float()
    assert (changed - 100).abs().max() <= 100 * strength + 3


def test_every_kind_of_colour_is_changed():
    # greys have no colour to change; the coloured part is too small to change the mean that contrast depends on
    pixels = torch.full((3, 20, 30), 60, dtype=torch.uint8)
    pixels[:, :, 15:] = 120
    pixels[:, 0, 0] = torch.tensor([70, 120, 60])
    found = {"brightness": [], "contrast": [], "saturation": [], "hue": []}
    for seed in range(40):
        image = seeded(as_it_is(pixels, horizontal_flip=0, color_jitter=0.4), seed, to_pil_image(pixels)).float()
        dark, bright = image[0, 1, 0], image[0, 1, 29]
        color = image[:, 0, 0]
        found["brightness"].append(image.mean() / 90)
        found["contrast"].append(bright / dark / 2)
        found["saturation"].append((color.max() - color.min()) / (bright - dark))
        found["hue"].append(torch.tensor(rgb_to_hsv(*(color / 255).tolist())[0]))
    for name, bound in (("brightness", 0.4), ("contrast", 0.4), ("saturation", 0.4), ("hue", 0.1)):
        values = torch.stack(found[name])
        width = bound / 3**0.5  # the standard deviation of a uniform distribution from -bound to bound
        assert 0.6 * width < values.std() < 1.6 * width, name
    plain = as_it_is(pixels, horizontal_flip=0, color_jitter=0.0)
    assert torch.equal(seeded(plain, 0, to_pil_image(pixels)), pixels)


@pytest.mark.parametrize("side", range(80, 96))
def test_large_scale_jitter_keeps_a_box_that_covers_all(side):
    # without cropping and padding, rounding alone may move its border outside
    picture = to_pil_image(torch.zeros(3, side, side, dtype=torch.uint8))
    transform = train_transform(min_size=1, max_size=1, large_scale_jitter=(50, (1.0, 1.0)))
    image, target = transform(picture, target_of([[0, 0, side, side]], side, side))
    check_boxes(image, target)
    assert target["labels"].tolist() == [3]


def test_scales_in_the_wrong_order_are_an_error():
    with pytest.raises(
        ValueError, match=r"the scales of `large_scale_jitter` must be \[low, high\] with low <= high, got \[2.0, 1.0\]"
    ):
        train_transform(min_size=1, max_size=1, large_scale_jitter=(50, (2.0, 1.0)))


def with_masks(target: dict, height: int, width: int) -> dict:
    """Return the target with masks that fill its boxes of whole pixels."""
    masks = torch.zeros(len(target["boxes"]), height, width, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, target["boxes"].int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    return target | {"masks": tv_tensors.Mask(masks)}


def check_masks(image: torch.Tensor, target: dict) -> None:
    """Check that every mask contains 0 and 1, has the size of the image, and matches its box within a pixel."""
    masks = target["masks"]
    assert type(masks) is torch.Tensor
    assert (masks.dtype, tuple(masks.shape)) == (torch.uint8, (len(target["boxes"]), *image.shape[1:]))
    assert len(target["labels"]) == len(masks)
    for mask, box in zip(masks, target["boxes"].tolist(), strict=True):
        assert mask.max() <= 1
        assert mask.any() or min(box[2] - box[0], box[3] - box[1]) < 2
        if mask.any():
            assert bright_box(mask[None]) == pytest.approx(box, abs=1.01)
            left, top, right, bottom = bright_box(mask[None])
            assert mask[top:bottom, left:right].all()


@given(planted())
def test_flip_moves_masks_with_boxes(case):
    picture, pixels, target = case
    height, width = pixels.shape[1:]
    image, moved = as_it_is(pixels, horizontal_flip=1)(picture, with_masks(target, height, width))
    assert torch.equal(moved["masks"][0] == 1, image[0] == 255)


@given(planted(most=60), st.integers(6, 40), st.integers(0, 2**32))
def test_masks_are_scaled_with_boxes(case, min_size, seed):
    picture, pixels, target = case
    height, width = pixels.shape[1:]
    transform = train_transform(min_size=[min_size, 2 * min_size], max_size=3 * min_size)
    image, moved = seeded(transform, seed, picture, with_masks(target, height, width))
    check_masks(image, moved)
    scales = image.shape[1] / height, image.shape[2] / width
    sides = [(target["boxes"][0, i + 2] - target["boxes"][0, i]).item() for i in (1, 0)]
    # the area grows like the image's, within a pixel on each side
    rows, columns = (side * scale for side, scale in zip(sides, scales, strict=True))
    assert (rows - 1) * (columns - 1) - 1 <= moved["masks"].sum() <= (rows + 1) * (columns + 1)


@given(planted(most=60), st.integers(0, 2**32))
def test_large_scale_jitter_moves_masks_with_boxes(case, seed):
    picture, pixels, target = case
    transform = train_transform(min_size=1, max_size=1, horizontal_flip=0.5, large_scale_jitter=(50, (0.4, 2.0)))
    image, moved = seeded(transform, seed, picture, with_masks(target, *pixels.shape[1:]))
    check_masks(image, moved)


def test_padding_belongs_to_no_mask():
    picture = to_pil_image(torch.full((3, 40, 30), 255, dtype=torch.uint8))
    transform = train_transform(min_size=1, max_size=1, large_scale_jitter=(40, (0.5, 0.5)))
    for seed in range(20):
        image, target = seeded(transform, seed, picture, with_masks(target_of([[0, 0, 30, 40]], 40, 30), 40, 30))
        assert torch.equal(target["masks"][0] == 1, image[0] == 255)


def test_a_cropped_box_is_removed_with_its_mask():
    picture = to_pil_image(torch.zeros(3, 40, 40, dtype=torch.uint8))
    transform = train_transform(min_size=1, max_size=1, horizontal_flip=0, large_scale_jitter=(40, (2.0, 2.0)))
    corners = [[0, 0, 4, 4], [36, 0, 40, 4], [0, 36, 4, 40], [36, 36, 40, 40]]
    counts = set()
    for seed in range(80):
        image, target = seeded(transform, seed, picture, with_masks(target_of(corners, 40, 40), 40, 40))
        counts.add(len(target["masks"]))
        check_masks(image, target)
    assert counts == {0, 1}


def test_without_strong_augmentations_images_are_resized_and_flipped():
    picture = to_pil_image(torch.randint(256, (3, 30, 40), dtype=torch.uint8))
    target = target_of([[3, 4, 20, 21]], 30, 40)
    strong = train_transform(min_size=15, max_size=99, color_jitter=0.9, large_scale_jitter=(50, (0.4, 2.0)))
    plain = train_transform(min_size=15, max_size=99)
    for seed in range(5):
        image, found = seeded(partial(strong, strong=False), seed, picture, target)
        expected, boxes = seeded(plain, seed, picture, target)
        assert torch.equal(image, expected)
        assert found["boxes"].tolist() == boxes["boxes"].tolist()
        assert tuple(seeded(strong, seed, picture, target)[0].shape) == (3, 50, 50)
