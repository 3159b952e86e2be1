"""Tiles that cover an image, and detections in them, with a detector whose results are known and with a real one."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import max_pool2d

from models.masks import paste_masks, unpasted_masks
from models.tiling import MIN_TILE, TiledDetector, tile_windows

SIDES = st.integers(1, 400)


@settings(max_examples=200, deadline=None)
@given(SIDES, SIDES, st.integers(MIN_TILE, 150), st.floats(0, 0.9))
def test_tiles_cover_every_pixel_and_share_what_was_asked(width, height, tile, overlap):
    windows = tile_windows(width, height, tile, overlap)
    seen = torch.zeros(height, width, dtype=torch.bool)
    for left, top, right, bottom in windows:
        assert (right - left, bottom - top) == (min(tile, width), min(tile, height))
        seen[top:bottom, left:right] = True
    assert seen.all()
    assert len(set(windows)) == len(windows)
    for start, end, length in ((0, 2, width), (1, 3, height)):
        sides = sorted({(window[start], window[end]) for window in windows})
        assert sides[0][0] == 0
        assert sides[-1][1] == length
        shared = [before[1] - after[0] for before, after in pairwise(sides)]
        assert all(pixels >= overlap * tile - 1e-4 for pixels in shared)
        # no tile could be left out
        assert all(after[1] - before[0] > tile for before, after in zip(sides, sides[2:], strict=False))


def test_tiles_are_those_of_sahi():
    """Recorded from sahi 0.12.8, get_slice_bboxes(image_height=480, image_width=1000, ..., 320, 0.2)."""
    recorded = [[0, 0, 320, 320], [256, 0, 576, 320], [512, 0, 832, 320], [680, 0, 1000, 320]]
    recorded += [[left, 160, right, 480] for left, _, right, _ in recorded]
    assert [[*window] for window in tile_windows(1000, 480, 320, 0.2)] == recorded


@pytest.mark.parametrize(
    ("tile", "overlap", "message"),
    [(31, 0.2, "at least 32 pixels, got 31"), (64, 0.91, "from 0 to 0.9, got 0.91"), (64, -0.1, "got -0.1")],
)
def test_tiles_out_of_range(tile, overlap, message):
    with pytest.raises(ValueError, match=message):
        TiledDetector(nn.Identity(), tile, overlap)


class Squares(nn.Module):
    """Finds the box of the pixels of each brightness: it is label 1 to 9 for 0.1 to 0.9; masks are the same pixels.

    It finds nothing in images with more pixels than `limit`.
    """

    def __init__(self, with_masks=False, limit=64 * 64):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.with_masks, self.limit = with_masks, limit
        self.batches = []

    def forward(self, images):
        self.batches.append([tuple(image.shape[-2:]) for image in images])
        assert all(image.dtype == torch.float32 for image in images)
        return [self.find(image) for image in images]

    def find(self, image):
        levels = (image[0] * 10).round().long() * (image[0].numel() <= self.limit)
        labels = [level for level in range(1, 10) if (levels == level).any()]
        masks = torch.stack([levels == level for level in labels]) if labels else torch.zeros(0, *levels.shape)
        found = {
            "boxes": torch.tensor([box_of(mask) for mask in masks]).reshape(-1, 4),
            "labels": torch.tensor(labels, dtype=torch.int64),
            # the score of a larger part is higher
            "scores": torch.tensor([mask.float().mean() for mask in masks]).reshape(-1),
        }
        order = found["scores"].argsort(descending=True)
        found |= {"masks": masks[:, None].float()} if self.with_masks else {}
        return {key: values[order] for key, values in found.items()}


def box_of(mask):
    rows, columns = mask.nonzero(as_tuple=True)
    return [float(value) for value in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]


def picture(width, height, boxes):
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    for index, (left, top, right, bottom) in enumerate(boxes, start=1):
        image[:, top:bottom, left:right] = round(index * 25.5)
    return image


# one inside of a tile, two across a border, one across four tiles, and one larger than a tile
BOXES = [(5, 5, 17, 23), (45, 60, 70, 71), (3, 45, 20, 75), (90, 38, 118, 70), (10, 80, 150, 115)]


@pytest.mark.parametrize("batch_size", [1, 5])
def test_objects_on_the_borders_of_tiles_are_found_once_and_whole(batch_size):
    detector = Squares()
    (found,) = TiledDetector(detector, 64, 0.2, batch_size=batch_size).eval()([picture(167, 121, BOXES)])
    assert dict(zip(found["labels"].tolist(), found["boxes"].tolist(), strict=True)) == {
        label: [*map(float, box)] for label, box in enumerate(BOXES, start=1)
    }
    assert len(found["labels"]) == len(BOXES)
    assert (found["scores"].diff() <= 0).all()
    # the memory of a batch: tiles, and at the end the image
    *batches, whole = detector.batches
    assert whole == [(121, 167)]
    assert {size for batch in batches for size in batch} == {(64, 64)}
    assert max(map(len, batches)) == batch_size
    assert sum(map(len, batches)) == len(tile_windows(167, 121, 64, 0.2))


def test_masks_are_moved_and_united():
    image = picture(167, 121, BOXES)
    detector = TiledDetector(Squares(with_masks=True), 64, 0.2).eval()
    (found,) = detector([image])
    assert found["masks"].shape == (len(BOXES), 1, 121, 167)
    levels = (image[0] / 25.5).round()
    for label, mask in zip(found["labels"].tolist(), found["masks"] >= 0.5, strict=True):
        wanted = (levels == label)[None]
        # patches are coarser than pixels, and torchvision pastes them a pixel too wide
        assert not (mask & ~grown(wanted)).any()
        assert not (~grown(~wanted) & ~mask).any()
    with unpasted_masks(detector):
        (patches,) = detector([image])
    assert "masks" not in patches
    assert torch.equal(torch.cat([*paste_masks(patches)]), found["masks"])


def grown(mask):
    return max_pool2d(mask.float(), 3, stride=1, padding=1) > 0


def test_objects_of_the_whole_image_are_found_in_bounded_memory(monkeypatch):
    """An object of many tiles that no tile shows well, in an image that is reduced to 80 pixels before."""

    class Large(Squares):
        def find(self, image):
            found = super().find(image)
            is_large = (found["boxes"][:, 2:] - found["boxes"][:, :2]).prod(1) > 900
            is_large &= image.shape[-1] != image.shape[-2]
            return {key: values[is_large] for key, values in found.items()}

    monkeypatch.setattr("models.tiling.WHOLE_PX", 80)
    image = picture(320, 240, [(40, 60, 280, 220)])
    detector = Large(with_masks=True, limit=80 * 60)
    (found,) = TiledDetector(detector, 64, 0.2).eval()([image])
    assert detector.batches[-1] == [(60, 80)]
    assert found["labels"].tolist() == [1]
    assert torch.allclose(found["boxes"], torch.tensor([[40.0, 60, 280, 220]]), atol=4)
    assert found["masks"].shape == (1, 1, 240, 320)
    assert abs(float((found["masks"] >= 0.5).sum()) / (240 * 160) - 1) < 0.1


def test_an_image_not_larger_than_a_tile_is_detected_as_it_is():
    image = picture(60, 41, BOXES[:1])
    (tiled,) = TiledDetector(Squares(), 64, 0.5).eval()([image])
    (whole,) = Squares()([image / 255])
    assert tiled.keys() == whole.keys()
    assert all(torch.equal(tiled[key], whole[key]) for key in whole)
    assert (TiledDetector(Squares(), 64, 0.5).eval()([picture(167, 121, [])])[0]["boxes"]).shape == (0, 4)


def test_training_is_an_error():
    with pytest.raises(RuntimeError, match="eval mode only"):
        TiledDetector(Squares(), 64, 0.2)([picture(60, 41, [])])
