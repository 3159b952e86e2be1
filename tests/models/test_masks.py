"""Masks that are pasted a few at a time are those that are pasted together."""

import pytest
import torch
from torch import nn
from torchvision.models.detection.roi_heads import paste_masks_in_image

from models import masks as module
from models.masks import join_patches, paste_masks, set_masks, unpasted_masks
from models.transform import DetectorTransform, LetterboxTransform

SIZE = (60, 90)


def detections(count, seed=0):
    """Patches on boxes of all places, some across the border."""
    draw = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=draw) * torch.tensor([90, 60]) - 10
    boxes = torch.cat([corners, corners + 2 + 40 * torch.rand(count, 2, generator=draw)], dim=1)
    return {"boxes": boxes, "masks": torch.rand(count, 1, 28, 28, generator=draw)}


@pytest.mark.parametrize("pixels", [1, 2 * 60 * 90, 2**24])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_masks_are_those_of_torchvision(monkeypatch, pixels, count):
    monkeypatch.setattr(module, "_PIXELS", pixels)
    expected = paste_masks_in_image(detections(count)["masks"], detections(count)["boxes"], SIZE)
    together, apart = detections(count), detections(count)
    set_masks(together, together["boxes"], SIZE, pasted=True)
    assert together.keys() == {"boxes", "masks"}
    assert torch.equal(together["masks"], expected)
    set_masks(apart, apart["boxes"], SIZE, pasted=False)
    assert "masks" not in apart
    for found in (together, apart):
        parts = [*paste_masks(found)]
        assert all(part.shape[0] * 60 * 90 <= max(pixels, 60 * 90) for part in parts)
        assert torch.equal(torch.cat([expected[:0], *parts]), expected)
    if count > 1:
        assert torch.equal(torch.cat([*paste_masks(apart, [5, 2])]), expected[[5, 2]])


def test_masks_of_boxes_outside_are_empty():
    found = detections(3)
    boxes = torch.tensor([[-20.0, 5, -3, 9], [95.0, 5, 99, 9], [1.0, 70, 5, 99]])
    set_masks(found, boxes, SIZE, pasted=True)
    assert not found["masks"].any()


def test_flipped_patches_are_pasted_flipped():
    one, other = detections(3), detections(4, seed=1)
    for found in (one, other):
        set_masks(found, found["boxes"], SIZE, pasted=False)
    other["mask_flipped"] = ~other["mask_flipped"]
    kept = torch.tensor([5, 0, 3])
    joined = {"boxes": torch.zeros(3, 4)} | join_patches(one, other, kept)
    (masks,) = paste_masks(joined)
    every = torch.cat([*paste_masks(one), *(part.flip(-1) for part in paste_masks(detections_of(other)))])
    assert torch.equal(masks, every[kept])


def detections_of(found):
    return found | {"mask_flipped": torch.zeros_like(found["mask_flipped"])}


@pytest.mark.parametrize("kind", [DetectorTransform, LetterboxTransform])
def test_a_transform_pastes_unless_told_not_to(kind):
    transform = kind(64, 64, [0.5] * 3, [0.5] * 3).eval()
    model = nn.Sequential(transform)
    boxes = torch.tensor([[3.0, 4, 40, 30], [10, 20, 64, 50]])
    inputs = lambda: [{"boxes": boxes.clone(), "masks": detections(2)["masks"]}]  # noqa: E731
    shape = (64, 64) if kind is LetterboxTransform else (43, 64)
    (together,) = transform.postprocess(inputs(), [shape], [SIZE])
    with unpasted_masks(model):
        (apart,) = transform.postprocess(inputs(), [shape], [SIZE])
    assert transform.pastes_masks
    assert torch.equal(together["boxes"], apart["boxes"])
    assert together["masks"].shape == (2, 1, *SIZE)
    assert torch.equal(torch.cat([*paste_masks(apart)]), together["masks"])


def test_pasting_is_on_again_after_an_error():
    transform = DetectorTransform(64, 64, [0.5] * 3, [0.5] * 3)
    with pytest.raises(KeyError), unpasted_masks(nn.ModuleList([transform])):
        raise KeyError(transform.pastes_masks)
    assert transform.pastes_masks
