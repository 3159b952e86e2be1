"""Boxes move with what they surround."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision import tv_tensors
from torchvision.transforms.v2.functional import to_pil_image

from data import eval_transform, train_transform


@st.composite
def planted(draw):
    """A dark picture with one bright rectangle, and the target that surrounds it."""
    width, height = draw(st.integers(4, 24)), draw(st.integers(4, 24))
    x = draw(st.integers(0, width - 1))
    y = draw(st.integers(0, height - 1))
    w = draw(st.integers(1, width - x))
    h = draw(st.integers(1, height - y))
    pixels = torch.zeros(3, height, width, dtype=torch.uint8)
    pixels[:, y : y + h, x : x + w] = 255
    boxes = torch.tensor([[x, y, x + w, y + h]], dtype=torch.float32)
    target = {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
        "labels": torch.tensor([3]),
        "image_id": 9,
    }
    return to_pil_image(pixels), pixels, target


def bright_box(image: torch.Tensor) -> list[float]:
    rows, columns = image[0].nonzero().unbind(1)
    return [columns.min().item(), rows.min().item(), columns.max().item() + 1, rows.max().item() + 1]


@given(planted())
def test_flip_moves_boxes_with_the_image(case):
    picture, pixels, target = case
    image, moved = train_transform(flip=1)(picture, target)
    assert torch.equal(image, pixels.flip(2))
    assert moved["boxes"].tolist() == [bright_box(image)]
    assert (moved["labels"].tolist(), moved["image_id"]) == ([3], 9)


@given(planted(), st.integers(0, 2**32))
def test_chance_of_a_flip_keeps_boxes_and_image_together(case, seed):
    picture, _, target = case
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        image, moved = train_transform(flip=0.5)(picture, target)
    assert moved["boxes"].tolist() == [bright_box(image)]


@given(planted())
@pytest.mark.parametrize("transform", [train_transform(flip=0), eval_transform()], ids=["flip 0", "eval"])
def test_nothing_else_moves(transform, case):
    picture, pixels, target = case
    image, same = transform(picture, target)
    assert torch.equal(image, pixels)
    assert same["boxes"].tolist() == target["boxes"].tolist()


@pytest.mark.parametrize("transform", [train_transform(), eval_transform()], ids=["train", "eval"])
def test_plain_tensors_come_out(transform):
    boxes = tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=(4, 6))
    image, target = transform(to_pil_image(torch.zeros(3, 4, 6, dtype=torch.uint8)), {"boxes": boxes})
    assert type(image) is type(target["boxes"]) is torch.Tensor
    assert image.dtype == torch.uint8
    assert tuple(target["boxes"].shape) == (0, 4)


def test_flip_is_a_probability():
    picture, flipped = to_pil_image(torch.tensor([[[0, 255]]], dtype=torch.uint8).expand(3, 1, 2)), 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(400):
            flipped += train_transform(flip=0.25)(picture)[0, 0, 0].item() == 255
    assert 70 < flipped < 130
