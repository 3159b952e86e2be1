"""Annotations cut into tiles, against arithmetic on whole masks, and image files of tiles."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from data.coco_file import DatasetError
from data.segmentation import decode_masks, encode_masks
from data.tile_cutting import cut_annotation, cut_datasets

WIDTH, HEIGHT = 61, 47
WINDOWS = [(0, 0, 40, 40), (21, 0, 61, 40), (0, 7, 40, 47), (21, 7, 61, 47)]


def windows_of(width, height):
    return [window for window in WINDOWS if (width, height) == (WIDTH, HEIGHT)] or [(0, 0, width, height)]


@st.composite
def outlines(draw):
    """A polygon of three to six corners, with fractions of pixels."""
    x = st.floats(0, WIDTH, width=32)
    y = st.floats(0, HEIGHT, width=32)
    return [value for _ in range(draw(st.integers(3, 6))) for value in (draw(x), draw(y))]


@settings(max_examples=150, deadline=None)
@given(st.lists(outlines(), min_size=1, max_size=2), st.booleans(), st.sampled_from([0.0, 0.3, 0.75]))
def test_cut_masks_are_those_of_the_whole_mask(polygons, as_run_lengths, min_visible):
    size = (WIDTH, HEIGHT)
    whole = decode_masks([polygons], size)[0]
    if not whole.any():
        return
    corners = np.concatenate([np.array(polygon).reshape(-1, 2) for polygon in polygons])
    low, high = corners.min(0), corners.max(0)
    if (high - low).min() < 1:
        return
    segmentation = polygons
    if as_run_lengths:
        rows, columns = whole.nonzero()
        low, high = np.array([columns.min(), rows.min()]), np.array([columns.max() + 1, rows.max() + 1])

        segmentation = encode_masks(torch.from_numpy(whole)[None].float())[0]
    bbox = [*low.tolist(), *(high - low).tolist()]
    annotation = {"bbox": bbox, "area": 5.5, "iscrowd": 0, "segmentation": segmentation, "category_id": 3}
    parts = cut_annotation(annotation, size, WINDOWS, min_visible)
    for (left, top, right, bottom), part in zip(WINDOWS, parts, strict=True):
        wanted = whole[top:bottom, left:right]
        inside = low[0] >= left and low[1] >= top and high[0] <= right and high[1] <= bottom
        if part is None:
            assert not wanted.any() or (np.minimum(high, [right, bottom]) - np.maximum(low, [left, top])).min() <= 0.01
            continue
        found = part.annotation
        assert found["category_id"] == 3
        mask = decode_masks([found["segmentation"]], (right - left, bottom - top))[0]
        assert np.array_equal(mask, wanted)
        if inside:
            assert (part.visible, found["area"], found["iscrowd"]) == (1, 5.5, 0)
            assert np.allclose(found["bbox"], [bbox[0] - left, bbox[1] - top, *bbox[2:]], atol=1e-4)
        else:
            assert part.visible == wanted.sum() / whole.sum()
            rows, columns = wanted.nonzero()
            box = [columns.min(), rows.min(), columns.max() + 1 - columns.min(), rows.max() + 1 - rows.min()]
            assert (found["bbox"], found["area"]) == (box, wanted.sum())
            assert found["iscrowd"] == int(part.visible < min_visible)


def test_cut_boxes():
    annotation = {"bbox": [30, 5, 20, 10], "area": 100, "iscrowd": 0}
    first, second, third, fourth = (
        part and (part.annotation, round(part.visible, 6))
        for part in cut_annotation(annotation, (61, 47), WINDOWS, 0.6)
    )
    assert first == ({"bbox": [30, 5, 10, 10], "area": 50, "iscrowd": 1}, 0.5)
    assert second == ({"bbox": [9, 5, 20, 10], "area": 100, "iscrowd": 0}, 1.0)
    assert third == ({"bbox": [30, 0, 10, 8], "area": 40, "iscrowd": 1}, 0.4)
    assert fourth == ({"bbox": [9, 0, 20, 8], "area": 80, "iscrowd": 0}, 0.8)
    assert cut_annotation({"bbox": [5, 1, 9, 5], "area": 9, "iscrowd": 1}, (61, 47), WINDOWS, 0.6)[1:] == [None] * 3
    # out of the image by rounding, and in a crowd
    rounded = cut_annotation({"bbox": [-0.5, -0.5, 20, 10], "area": 200, "iscrowd": 1}, (61, 47), WINDOWS, 0.3)[0]
    assert rounded.annotation == {"bbox": [-0.5, -0.5, 20, 10], "area": 200, "iscrowd": 1}


def dataset(*images):
    entries = [
        {"id": number, "file_name": name, "width": size[0], "height": size[1]}
        for number, (name, size) in enumerate(images, start=5)
    ]
    return {"images": entries, "annotations": [], "categories": [{"id": 3, "name": "a"}]}


def cut(datasets, tmp_path, min_visible=0.3):
    return cut_datasets(datasets, tmp_path, tmp_path / "tiles", windows=windows_of, min_visible=min_visible)


def test_files_and_counts(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 2**16, (HEIGHT, WIDTH), dtype=np.uint16)
    (tmp_path / "deep").mkdir()
    Image.fromarray(pixels).save(tmp_path / "deep/grey.tif")
    colour = Image.fromarray((pixels[:, :, None] // np.array([256, 300, 999])).astype(np.uint8))
    colour.save(tmp_path / "colour.png")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    colour.rotate(90, expand=True).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    train = dataset(("deep/grey.tif", (WIDTH, HEIGHT)), ("turned.jpg", (WIDTH, HEIGHT)))
    train["annotations"] = [
        {"id": 1, "image_id": 5, "category_id": 3, "bbox": [30, 5, 20, 10], "area": 200, "iscrowd": 0},
        {"id": 2, "image_id": 6, "category_id": 3, "bbox": [2, 2, 58, 44], "area": 2552, "iscrowd": 0},
    ]
    val = dataset(("colour.png", (WIDTH, HEIGHT)), ("missing.png", (9, 9)))
    found, counts = cut({"train": train, "val": val}, tmp_path, min_visible=0.6)
    names = [f"deep/grey.tif_{left}_{top}.png" for left, top, *_ in WINDOWS]
    names += [f"turned_{left}_{top}.jpg" for left, top, *_ in WINDOWS]
    assert [entry["file_name"] for entry in found["train"]["images"]] == names
    assert [entry["id"] for split in found.values() for entry in split["images"]] == [*range(1, 13)]
    ids = [annotation["id"] for annotation in found["train"]["annotations"]]
    assert ids == [*range(1, 9)]
    for (left, top, right, bottom), name in zip(WINDOWS, names, strict=False):
        with Image.open(tmp_path / "tiles" / name) as tile:
            assert np.array_equal(np.asarray(tile), pixels[top:bottom, left:right])
        with Image.open(tmp_path / f"tiles/colour_{left}_{top}.png") as tile:
            assert np.array_equal(np.asarray(tile), np.asarray(colour)[top:bottom, left:right])
        with Image.open(tmp_path / f"tiles/turned_{left}_{top}.jpg") as tile:
            assert tile.size == (40, 40)
            assert not tile.getexif()
    assert counts["train"][:5] == (8, 0, 2, 1, 6)
    assert counts["train"].never == ["annotation 2 of turned.jpg"]
    assert counts["val"][:5] == (4, 4, 0, 0, 0)
    assert "missing.png" in counts["val"].unreadable[0]


def test_an_image_of_another_size_is_unreadable(tmp_path):
    Image.new("RGB", (9, 8)).save(tmp_path / "a.png")
    _, counts = cut({"val": dataset(("a.png", (8, 8)))}, tmp_path)
    assert "must have 8x8 pixels, got 9x8" in counts["val"].unreadable[0]


def test_tiles_of_two_images_with_one_name_are_an_error(tmp_path):
    with pytest.raises(DatasetError, match=r"the tiles of a\.png and A\.PNG have the same names"):
        cut({"train": dataset(("a.png", (8, 8))), "val": dataset(("A.PNG", (8, 8)))}, tmp_path)
