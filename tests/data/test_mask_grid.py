"""Masks that are decoded one at a time on transformed rows and columns are those of transformed whole masks."""

import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from data import TrainTransform, decode_masks
from data.geometry import crop_steps, quarter_turn, rotation_steps
from data.mask_grid import mask_grid, with_masks

SIZE = (50, 40)  # width, height
OUTLINES = [[[5, 5, 30, 5, 30, 35]], [[0, 0, 50, 0, 50, 40, 0, 40]], [[48, 2, 50, 2, 50, 3]], [[9, 20, 24, 21, 12, 39]]]
OFF = {"iou_crop": 0, "crop": 0, "zoom_out": 0, "scale": 0, "fill": (1, 2, 3), "min_visibility": 0.0}

STEPS = {
    "resize": [v2.Resize((71, 33), antialias=False)],
    "smaller": [v2.Resize((9, 13))],
    "crop": [v2.RandomCrop((20, 30))],
    "pad": [v2.Pad([3, 5, 7, 9])],
    "pad of two": [v2.Pad([3, 5])],
    "pad of one": [v2.Pad(4)],
    "flip": [v2.RandomHorizontalFlip(0.7)],
    "vertical flip": [v2.RandomVerticalFlip(0.7)],
    "quarter turn": [quarter_turn(0.8)],
    "quarter turn between others": [v2.Resize((71, 33)), quarter_turn(1), v2.RandomHorizontalFlip(1), v2.Pad([1, 2])],
    "none": [],
}
# with objects that are cut: 4 seeds of each in which an object is removed, and others in which none is
CUTTING = {
    "IoU crop": crop_steps(**OFF | {"iou_crop": 1}),
    "random crop": crop_steps(**OFF | {"crop": 1}),
    "zoom out": crop_steps(**OFF | {"zoom_out": 1}),
    "scale": crop_steps(**OFF | {"scale": 2.0}),
    "rotation": rotation_steps(rotate=180, fill=(1, 2, 3), min_visibility=0.0),
    "all": [
        *crop_steps(**OFF | {"iou_crop": 1, "crop": 1, "zoom_out": 1, "scale": 0.5, "min_visibility": 0.3}),
        v2.Resize((71, 60), antialias=False),
        quarter_turn(1),
        v2.RandomVerticalFlip(1),
        *rotation_steps(rotate=30, fill=(1, 2, 3), min_visibility=0.3),
    ],
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
    """The target of each way."""
    found = []
    for target in targets():
        torch.manual_seed(seed)
        _, after = transform(tv_tensors.Image(torch.zeros(3, *SIZE[::-1], dtype=torch.uint8)), target)
        if "masks" not in after:
            after = with_masks(after, OUTLINES, SIZE)
            assert {*after} == {"boxes", "labels", "masks"}
        found.append(
            {key: torch.as_tensor(after[key]).as_subclass(torch.Tensor) for key in ("boxes", "labels", "masks")}
        )
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_each_step(steps, seed):
    found, expected = both(v2.Compose([*steps, v2.RandomHorizontalFlip(0)]), seed)
    assert found["masks"].dtype == expected["masks"].dtype == torch.uint8
    for key, value in found.items():
        assert torch.equal(value, expected[key])


@pytest.mark.parametrize("steps", CUTTING.values(), ids=CUTTING)
def test_each_step_that_cuts_objects(steps):
    """The masks are those of whole masks, without empty ones; the boxes of cut objects are around them."""
    counts, tight = set(), 0
    for seed in range(40):
        found, expected = both(v2.Compose(steps), seed)
        visible = expected["masks"].flatten(1).bool().any(dim=1)
        uncut = dict(zip(expected["labels"].tolist(), expected["boxes"].tolist(), strict=True))
        kept = [label in found["labels"].tolist() for label in expected["labels"].tolist()]
        assert all(kept[index] for index in visible.nonzero().flatten().tolist())
        assert torch.equal(found["labels"], expected["labels"][kept])
        assert torch.equal(found["masks"], expected["masks"][kept])
        for label, box, mask in zip(found["labels"].tolist(), found["boxes"].tolist(), found["masks"], strict=True):
            assert 0 <= box[0] < box[2] <= mask.shape[1]
            assert 0 <= box[1] < box[3] <= mask.shape[0]
            if box != uncut[label]:
                around = masks_to_boxes(mask[None])[0] + torch.tensor([0, 0, 1, 1])
                assert box == around.tolist()
                tight += 1
        counts.add(len(found["labels"]))
    assert tight or steps is CUTTING["zoom out"]
    assert len(counts) > 1 or steps is CUTTING["zoom out"]


@pytest.mark.parametrize("seed", range(12))
def test_large_scale_jitter_that_removes_boxes(seed):
    transform = TrainTransform(lambda *_: [], fill=(1, 2, 3), large_scale_jitter=(32, (0.2, 4.0)))
    found, expected = both(transform, seed)
    for key, value in found.items():
        assert torch.equal(value, expected[key])


@pytest.mark.parametrize("angle", [0.0, 20.0])
def test_the_memory_is_that_of_one_whole_mask(monkeypatch, angle):
    counts = []
    decode = lambda masks, _: counts.append(len(masks)) or np.ones((1, *SIZE[::-1]), dtype=np.uint8)  # noqa: E731
    monkeypatch.setattr("data.mask_grid.decode_masks", decode)
    target = mask_grid(SIZE, 9) | {"boxes": torch.zeros(9, 4), "labels": torch.zeros(9)}
    target |= {key: functional.resize(target[key], [4, 5]) for key in ("rows", "columns")}
    target["angle"] = functional.rotate(target["angle"], angle)
    assert with_masks(target, OUTLINES * 3, SIZE)["masks"].shape == (9, 4, 5)
    assert counts == [1] * 9
