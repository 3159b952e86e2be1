"""Augmentations of the pixels: within their range, with their probability, and without any other effect."""

import pytest
import torch
from torchvision import tv_tensors

from data import TrainTransform
from data.colours import pixel_steps

OFF = {"grayscale": 0.0, "blur": 0.0, "noise": 0.0, "jpeg": 0.0}


def seeded(step, seed, image):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return step(image)


def pictures(name: str, count: int, image: torch.Tensor, probability: float = 1.0) -> list[torch.Tensor]:
    (step,) = pixel_steps(**OFF | {name: probability})
    return [seeded(step, seed, tv_tensors.Image(image)).as_subclass(torch.Tensor) for seed in range(count)]


@pytest.fixture
def coloured() -> torch.Tensor:
    """A smooth image with an edge, `(3, 41, 57)`."""
    rows, columns = torch.arange(41)[:, None], torch.arange(57)[None]
    image = torch.stack([rows * 2 + columns, 200 - rows - columns, 60 + rows + 0 * columns]).to(torch.uint8)
    image[:, :, 30:] //= 2
    return image


@pytest.mark.parametrize("name", OFF)
def test_the_probability_and_the_form(name, coloured):
    found = pictures(name, 200, coloured, 0.3)
    assert all(one.dtype == torch.uint8 and one.shape == coloured.shape for one in found)
    assert sum(not torch.equal(one, coloured) for one in found) == pytest.approx(60, abs=25)
    assert pixel_steps(**OFF) == []


def test_grey_is_the_luminance(coloured):
    (found,) = pictures("grayscale", 1, coloured)
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert (found[0] - (coloured * weights).sum(0)).abs().max() < 1.5


def test_noise_has_a_random_deviation_of_at_most_6_percent_of_white():
    image = torch.full((3, 60, 70), 128, dtype=torch.uint8)
    deviations = [(one.float() - 128).std().item() for one in pictures("noise", 60, image)]
    assert max(deviations) == pytest.approx(0.06 * 255, rel=0.1)
    assert min(deviations) < 2
    assert all(abs(one.float().mean() - 128) < 1 for one in pictures("noise", 10, image))


def test_blur_and_jpeg_keep_what_is_seen(coloured):
    for name, most in (("blur", 12), ("jpeg", 12)):
        found = pictures(name, 30, coloured)
        assert len({one.sum().item() for one in found}) > 10, "their strength is random"
        assert all((one.float() - coloured.float()).abs().mean() < most for one in found)


def test_boxes_and_masks_stay(coloured):
    boxes = tv_tensors.BoundingBoxes(torch.tensor([[3.0, 4, 20, 30]]), format="XYXY", canvas_size=(41, 57))
    masks = tv_tensors.Mask(torch.ones(1, 41, 57, dtype=torch.uint8))
    every = dict.fromkeys(OFF, 1.0) | {"color_jitter": 0.5, "horizontal_flip": 0.0}
    transform = TrainTransform(lambda *_: [], (0, 0, 0), **every)
    image, target = transform(tv_tensors.Image(coloured), {"boxes": boxes, "labels": torch.tensor([1]), "masks": masks})
    assert not torch.equal(image, coloured)
    assert target["boxes"].tolist() == [[3, 4, 20, 30]]
    assert torch.equal(target["masks"], masks.as_subclass(torch.Tensor))
