"""Resizing is equal in training and evaluation, and boxes and masks are mapped back to the image."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import interpolate
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import to_pil_image

from models import DETECTORS, build_resize
from models.resize import KINDS, Resize

MEAN, STD = (0.5, 0.25, 0.75), (0.2, 0.3, 0.4)
FILL = (128, 64, 191)
SIZES = st.tuples(st.integers(3, 90), st.integers(3, 90))
SQUARES = [kind for kind in KINDS if kind != "shortest"]


def random_image(size) -> torch.Tensor:
    return torch.randint(256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(sum(size)))


def trained_on(resize: Resize, image: torch.Tensor, boxes=(), size=None):
    """Return the image and the boxes of training, by the v2 transforms."""
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    target = {"boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=image.shape[1:])}
    target["masks"] = tv_tensors.Mask(torch.ones(1, *image.shape[1:], dtype=torch.uint8))
    return v2.Compose([v2.ToImage(), *resize.train_steps(size, FILL)])(to_pil_image(image), target)


def evaluated_on(resize: Resize, image: torch.Tensor, boxes=()):
    """Return the image without normalisation, and the boxes of evaluation."""
    transform = resize.transform(MEAN, STD).eval()
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    prepared, (target,) = transform([image / 255], [{"boxes": boxes}])
    height, width = prepared.image_sizes[0]
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return prepared.tensors[0, :, :height, :width] * std + mean, target["boxes"]


@pytest.mark.parametrize("kind", SQUARES)
@given(size=SIZES, side=st.integers(16, 70))
def test_training_and_evaluation_use_the_same_square(kind, size, side):
    image, box = random_image(size), [[0.5, 1, size[1] - 1, size[0]]]
    resize = Resize(kind, (side,), 1)
    ours, target = trained_on(resize, image, box)
    theirs, boxes = evaluated_on(resize, image, box)
    assert ours.shape == theirs.shape == (3, side, side)
    # torchvision works in whole numbers and rounds twice, vertically and horizontally
    assert (ours / 255 - theirs).abs().max() < 1.5 / 255
    torch.testing.assert_close(torch.Tensor(target["boxes"]), boxes, rtol=0, atol=1e-3)


@given(size=SIZES, side=st.integers(16, 70))
def test_a_letterbox_centres_the_image(size, side):
    """By definition the longer side fills the square, and the rest is split equally between both sides."""
    image = random_image(size)
    square, target = trained_on(Resize("letterbox", (side,), 1), image)
    scale = side / max(size)
    is_image = target["masks"][0] == 1
    rows, columns = is_image.any(1).nonzero(), is_image.any(0).nonzero()
    for places, pixels in ((rows, size[0]), (columns, size[1])):
        before, after = places[0].item(), side - 1 - places[-1].item()
        assert 0 <= after - before <= 1
        assert abs(len(places) - pixels * scale) <= max(0.5, 1 - pixels * scale)
    assert is_image.sum() == len(rows) * len(columns)
    expected = interpolate(image[None] / 255, (len(rows), len(columns)), mode="bilinear")[0]
    inside = torch.Tensor(square)[:, is_image].view(3, len(rows), len(columns)) / 255
    assert (inside - expected).abs().max() < 1.5 / 255
    assert (torch.Tensor(square)[:, ~is_image] == torch.tensor(FILL)[:, None]).all()


@given(size=SIZES, side=st.integers(16, 70))
def test_a_stretched_image_is_resized_along_each_axis(size, side):
    image, box = random_image(size), [[0, 0.25 * size[0], 0.5 * size[1], size[0]]]
    square, target = trained_on(Resize("stretch", (side,), 1), image, box)
    expected = interpolate(image[None] / 255, (side, side), mode="bilinear")[0]
    assert (square / 255 - expected).abs().max() < 1.5 / 255
    assert target["boxes"][0].tolist() == pytest.approx([0, 0.25 * side, 0.5 * side, side], abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@given(size=SIZES, side=st.integers(16, 70))
def test_detections_come_back_to_the_image(kind, size, side):
    height, width = size
    transform = Resize(kind, (side,), 2 * side).transform(MEAN, STD).eval()
    box = torch.tensor([[0.2 * width, 0.3 * height, 0.7 * width, 0.9 * height], [0, 0, width, height]])
    prepared, (target,) = transform([random_image(size) / 255], [{"boxes": box}])
    found = {"boxes": target["boxes"], "masks": torch.ones(2, 1, 28, 28)}
    (back,) = transform.postprocess([found], prepared.image_sizes, [size])
    torch.testing.assert_close(back["boxes"], box, rtol=0, atol=1e-3)
    assert back["masks"].shape == (2, 1, height, width)
    # pasted with soft borders into whole pixels
    mask, whole = back["masks"][:, 0]
    assert mask[int(0.6 * height), int(0.45 * width)] > 0.5
    assert whole[height // 2, width // 2] > 0.5
    rows, columns = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    is_outside = (rows < 0.3 * height - 2) | (rows > 0.9 * height + 2)
    assert not mask[is_outside].any()
    assert not mask[:, (columns < 0.2 * width - 2) | (columns > 0.7 * width + 2)].any()


def test_detections_in_the_padding_of_a_letterbox_are_clipped():
    """An image of 40 x 80 in a square of 40 pixels has 20 rows, below 10 rows of padding."""
    transform = Resize("letterbox", (40,), 1).transform(MEAN, STD).eval()
    boxes = torch.tensor([[0.0, 0, 40, 25], [10, 5, 20, 15], [10, 1, 30, 6]])
    masks = torch.zeros(3, 1, 28, 28)
    masks[0, :, :14] = 1  # the upper half of a box from row -20 to 30
    masks[1:] = 1
    (back,) = transform.postprocess([{"boxes": boxes, "masks": masks}], [(40, 40)], [(40, 80)])
    assert back["boxes"].tolist() == [[0, 0, 80, 30], [20, 0, 40, 10], [20, 0, 60, 0]]
    upper, part, outside = (mask[0] > 0.5 for mask in back["masks"])
    assert not outside.any()
    assert upper[:3, 5:75].all()
    assert not upper[8:].any()
    assert part[1:9, 21:39].all()
    assert not part[12:].any()
    assert not part[:, :18].any()
    assert not part[:, 42:].any()
    assert transform.margins((40, 80)) == (10, 0, 10, 0)
    assert transform.margins((81, 40)) == (0, 10, 0, 10)


@pytest.mark.parametrize("kind", KINDS)
def test_resized_first_or_normalised_first_is_the_same(kind):
    image = random_image((40, 70)).double() / 255
    transform = Resize(kind, (64,), 96).transform(MEAN, STD).eval()
    expected = transform([image])[0]
    resized = transform.resize_unnormalized(image)
    assert tuple(resized.shape[1:]) == tuple(expected.image_sizes[0])
    found = transform.normalize(resized)
    height, width = resized.shape[1:]
    torch.testing.assert_close(found, expected.tensors[0, :, :height, :width], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_training_images_are_not_resized(kind):
    transform = Resize(kind, (64,), 96).transform(MEAN, STD)
    image = random_image((40, 50)) / 255
    prepared, (target,) = transform([image], [{"boxes": torch.tensor([[1.0, 2, 3, 4]])}])
    assert prepared.image_sizes == [(40, 50)]
    assert target["boxes"].tolist() == [[1, 2, 3, 4]]
    assert transform.postprocess(["left alone"], [(1, 1)], [(1, 1)]) == ["left alone"]


@pytest.mark.parametrize("kind", SQUARES)
def test_one_size_is_drawn_for_a_step_and_the_last_evaluates(kind):
    resize = Resize(kind, (32, 64, 48), 96)
    assert resize.step_sizes == (32, 64, 48)
    image = random_image((20, 30))
    for size, side in ((32, 32), (64, 64), (None, 48)):
        assert trained_on(resize, image, size=size)[0].shape == (3, side, side)
    assert evaluated_on(resize, image)[0].shape == (3, 48, 48)


def test_each_image_draws_its_own_shorter_side():
    resize = Resize("shortest", (20, 24, 28), 100)
    assert resize.step_sizes == ()
    image = random_image((50, 40))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert {trained_on(resize, image)[0].shape[2] for _ in range(30)} == {20, 24, 28}
    assert evaluated_on(resize, image)[0].shape == (3, 35, 28)


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_of_evaluation_may_be_another_one(kind):
    data = {"resize": kind, "min_size": [20, 24], "max_size": 100}
    assert build_resize(DETECTORS["fcos"], data).eval_side == 24
    resize = build_resize(DETECTORS["fcos"], data | {"eval_size": 30})
    assert resize.sizes == (20, 24)
    image = random_image((50, 40))
    shape = (3, 37, 30) if kind == "shortest" else (3, 30, 30)
    assert evaluated_on(resize, image)[0].shape == shape
    side = 24 if kind == "shortest" else 30
    assert trained_on(Resize(kind, (24,), 100, 30), image)[0].shape[2] == side


def test_an_unknown_kind():
    with pytest.raises(ValueError, match="unknown kind of resizing 'shorter', known: shortest, stretch, letterbox"):
        Resize("shorter", (64,), 96)
