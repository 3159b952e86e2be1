"""Masks that are decoded one at a time on transformed rows and columns are those of transformed whole masks."""

import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from data import TrainTransform, decode_masks
from data.mask_grid import mask_grid, masks_on_grid

SIZE = (50, 40)  # width, height
OUTLINES = [[[5, 5, 30, 5, 30, 35]], [[0, 0, 50, 0, 50, 40, 0, 40]], [[48, 2, 50, 2, 50, 3]], [[9, 20, 24, 21, 12, 39]]]

STEPS = {
    "resize": [v2.Resize((71, 33), antialias=False)],
    "smaller": [v2.Resize((9, 13))],
    "crop": [v2.RandomCrop((20, 30))],
    "pad": [v2.Pad([3, 5, 7, 9])],
    "pad of two": [v2.Pad([3, 5])],
    "pad of one": [v2.Pad(4)],
    "flip": [v2.RandomHorizontalFlip(0.7)],
    "none": [],
}


def targets():
    """The target of an image, and the same with masks."""
    boxes = tv_tensors.BoundingBoxes(
        torch.tensor([[5.0, 5, 30, 35], [0, 0, 50, 40], [48, 2, 50, 3], [9, 20, 24, 39]]),
        format="XYXY",
        canvas_size=SIZE[::-1],
    )
    target = {"boxes": boxes, "labels": torch.tensor([1, 2, 3, 4])}
    return target | mask_grid(SIZE, 4), target | {
        "masks": tv_tensors.Mask(torch.from_numpy(decode_masks(OUTLINES, SIZE)))
    }


def both(transform, seed):
    """The masks of each way, with the labels that remain."""
    found = []
    for target in targets():
        torch.manual_seed(seed)
        _, after = transform(tv_tensors.Image(torch.zeros(3, *SIZE[::-1], dtype=torch.uint8)), target)
        masks = after["masks"] if "masks" in after else masks_on_grid(after, OUTLINES, SIZE)
        assert not {"rows", "columns", "objects"} & {*after}
        found.append((torch.as_tensor(masks).as_subclass(torch.Tensor), after["labels"].tolist()))
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_each_step(steps, seed):
    (masks, _), (expected, _) = both(v2.Compose([*steps, v2.RandomHorizontalFlip(0)]), seed)
    assert masks.dtype == expected.dtype == torch.uint8
    assert torch.equal(masks, expected)


@pytest.mark.parametrize("seed", range(12))
def test_large_scale_jitter_that_removes_boxes(seed):
    transform = TrainTransform(lambda *_: [], fill=(1, 2, 3), large_scale_jitter=(32, (0.2, 4.0)))
    (masks, labels), (expected, same) = both(transform, seed)
    assert labels == same
    assert torch.equal(masks, expected)


def test_the_memory_is_that_of_one_whole_mask(monkeypatch):
    counts = []
    decode = lambda masks, _: counts.append(len(masks)) or np.ones((1, *SIZE[::-1]))  # noqa: E731
    monkeypatch.setattr("data.mask_grid.decode_masks", decode)
    target = mask_grid(SIZE, 9)
    target |= {key: functional.resize(target[key], [4, 5]) for key in ("rows", "columns")}
    assert masks_on_grid(target, OUTLINES * 3, SIZE).shape == (9, 4, 5)
    assert counts == [1] * 9
