"""Items of the data set have the format of torchvision's detectors."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from data import CocoDetection, ImageError, TrainTransform, eval_transform, load_annotations
from data.ignored_boxes import IgnoredBoxes, with_ignored_inside

# file name -> size, and boxes (x, y, width, height) by category id
PICTURES = {
    "wide.png": ((80, 40), [(90, [1.5, 2, 30, 20]), (3, [10, 4, 20.25, 30])]),
    "empty.png": ((40, 80), []),
    "crowd.png": ((40, 50), [(3, [0, 0, 40, 50])]),
}


@pytest.fixture(scope="module")
def annotations(tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp("coco")
    content = {"images": [], "annotations": [], "categories": [{"id": 90}, {"id": 3}]}
    for image_id, (name, (size, boxes)) in enumerate(PICTURES.items(), start=11):
        Image.new("RGB", size, (1, 2, 3)).save(folder / name)
        content["images"].append({"id": image_id, "file_name": name, "width": size[0], "height": size[1]})
        for category_id, bbox in boxes:
            entry = {"image_id": image_id, "category_id": category_id, "bbox": bbox, "iscrowd": int("crowd" in name)}
            content["annotations"].append(entry)
    (folder / "a.json").write_text(json.dumps(content))
    return load_annotations(folder, folder / "a.json")


def test_item(annotations):
    image, target = CocoDetection(annotations, eval_transform())[0]
    assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, 40, 80))
    assert image[:, 0, 0].tolist() == [1, 2, 3]
    assert target["boxes"].dtype == torch.float32
    assert target["boxes"].tolist() == [[1.5, 2, 31.5, 22], [10, 4, 30.25, 34]]
    assert target["labels"].dtype == torch.int64
    assert target["labels"].tolist() == [2, 1], "labels count the category ids in ascending order from 1"
    assert target["image_id"] == 11


@pytest.mark.parametrize("index", [1, 2], ids=["no box", "crowd alone"])
def test_image_without_training_boxes(annotations, index):
    _, target = CocoDetection(annotations, eval_transform())[index]
    assert tuple(target["boxes"].shape) == (0, 4)
    assert target["boxes"].dtype == torch.float32
    assert tuple(target["labels"].shape) == (0,)
    assert target["labels"].dtype == torch.int64


@pytest.mark.parametrize(("keep", "ids"), [(True, [11, 12, 13]), (False, [11])])
def test_keep_images_without_boxes(annotations, keep, ids):
    dataset = CocoDetection(annotations, eval_transform(), keep_images_without_boxes=keep)
    assert [dataset[index][1]["image_id"] for index in range(len(dataset))] == ids
    assert dataset.aspect_ratios == [2.0, 0.5, 0.8][: len(ids)]


def test_aspect_ratio_of_an_image_without_a_declared_size(tmp_path):
    entries = [
        {"id": 1, "width": 30},
        {"id": 2},
        {"id": 3, "width": 0, "height": 9},
        {"id": 4, "width": 30, "height": 9},
    ]
    content = {"images": [entry | {"file_name": "a.png"} for entry in entries], "categories": [{"id": 1}]}
    (tmp_path / "a.json").write_text(json.dumps(content | {"annotations": []}))
    annotations = load_annotations(tmp_path, tmp_path / "a.json", check_images="never")
    assert CocoDetection(annotations, eval_transform()).aspect_ratios == [1.0, 1.0, 1.0, 30 / 9]


def test_transform_gets_image_target_and_the_arguments_of_the_step(annotations):
    dataset = CocoDetection(
        annotations, lambda image, target, **asked: (tuple(image.shape), target["boxes"].canvas_size, asked)
    )
    assert dataset[0] == ((3, 40, 80), (40, 80), {"size": None, "strong": True})
    assert dataset.read(0, 64, strong=False) == ((3, 40, 80), (40, 80), {"size": 64, "strong": False})
    assert dataset.dummy(64, strong=False) == ((3, 64, 64), (64, 64), {"size": 64, "strong": False})


def test_vanished_image_is_named(annotations, tmp_path):
    dataset = CocoDetection(replace(annotations, image_dir=tmp_path), eval_transform())
    with pytest.raises(ImageError, match=r"wide\.png does not exist"):
        dataset[0]


def test_masks_that_were_not_loaded_are_an_error(annotations):
    with pytest.raises(
        ValueError, match=r"`masks` needs annotations loaded with `invalid_masks`, got .*a\.json loaded without"
    ):
        CocoDetection(annotations, eval_transform(), masks=True)


def masked(folder, size=(80, 40), exif=None, **image):
    """Return a data set of one image with an object as a polygon and as run lengths, and a crowd region."""
    picture, options = Image.new("RGB", size, (1, 2, 3)), {}
    if exif:
        options["exif"] = picture.getexif()
        options["exif"][0x0112] = exif
    picture.save(folder / "a.jpg", **options)
    size = [image.get("height", 40), image.get("width", 80)]
    runs = [2 * size[0], 10, size[0] - 10, 10, size[0] - 10 + (size[1] - 4) * size[0]]
    outlines = [
        [[20, 5, 35, 5, 35, 25, 20, 25]],
        {"size": size, "counts": runs},
        {"size": size, "counts": [0, size[0] * size[1]]},
    ]
    boxes = [[20, 5, 15, 20], [2, 0, 2, 10], [0, 0, *size[::-1]]]
    content = {
        "images": [{"id": 1, "file_name": "a.jpg"} | image],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"image_id": 1, "category_id": 1, "bbox": bbox, "segmentation": outline, "iscrowd": int(index == 2)}
            for index, (bbox, outline) in enumerate(zip(boxes, outlines, strict=True))
        ],
    }
    (folder / "a.json").write_text(json.dumps(content))
    return load_annotations(folder, folder / "a.json", invalid_masks="raise")


def test_masks_are_inside_of_their_boxes(tmp_path):
    annotations = masked(tmp_path, width=80, height=40)
    _, target = CocoDetection(annotations, eval_transform(), masks=True)[0]
    masks = target["masks"]
    assert (masks.dtype, tuple(masks.shape)) == (torch.uint8, (2, 40, 80)), "crowd regions are not used in training"
    assert type(masks) is torch.Tensor
    for mask, box in zip(masks, target["boxes"], strict=True):
        left, top, right, bottom = box.int().tolist()
        assert mask[top:bottom, left:right].all()
        assert mask.sum() == (bottom - top) * (right - left)
    assert "masks" not in CocoDetection(annotations, eval_transform())[0][1]


def test_an_image_without_an_object_has_no_mask(annotations):
    without = load_annotations(annotations.image_dir, annotations.path, invalid_masks="drop")
    _, target = CocoDetection(without, eval_transform(), masks=True)[1]
    assert (target["masks"].dtype, tuple(target["masks"].shape)) == (torch.uint8, (0, 80, 40))


@pytest.mark.parametrize(("width", "height"), [(40, 80), (80, 40)], ids=["as stored", "as turned"])
def test_masks_follow_the_orientation_of_the_image(tmp_path, width, height):
    """If EXIF rotates an image, the declared size shows the orientation of the outlines."""
    annotations = masked(tmp_path, size=(40, 80), exif=6, width=width, height=height)
    image, target = CocoDetection(annotations, eval_transform(), masks=True)[0]
    assert tuple(image.shape[1:]) == tuple(target["masks"].shape[1:]) == (height, width)
    rows, columns = np.nonzero(target["masks"][0].numpy())
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (20, 5, 35, 25)


def test_masks_of_an_image_without_a_declared_size_have_the_size_of_the_image(tmp_path):
    image, target = CocoDetection(masked(tmp_path), eval_transform(), masks=True)[0]
    assert tuple(image.shape[1:]) == tuple(target["masks"].shape[1:]) == (40, 80)


def test_an_image_that_appears_after_the_start_and_is_too_small_is_an_error(tmp_path):
    content = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "categories": [{"id": 1}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [90, 5, 20, 20]}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    dataset = CocoDetection(load_annotations(tmp_path, tmp_path / "a.json", check_images="never"), eval_transform())
    for size, problem in (((100, 80), "a.png is smaller than its boxes"), ((120, 80), None)):
        Image.new("RGB", size).save(tmp_path / "a.png")
        with pytest.raises(ImageError, match=problem) if problem else nullcontext():
            assert dataset[0][1]["boxes"].tolist() == [[90, 5, 110, 25]]


def test_crowd_regions_are_ignored_and_move_with_the_image(tmp_path):
    """An ignored box is where the transform moves an object with the same box; at borders it extends beyond them."""
    boxes = {0: [[20.0, 10, 12, 8], [0, 0, 6, 50]], 1: [[20.0, 10, 12, 8], [50, 30, 40, 40], [0, 0, 6, 50]]}
    annotations = [
        {"image_id": 1, "category_id": 1, "bbox": bbox, "iscrowd": crowd} for crowd in boxes for bbox in boxes[crowd]
    ]
    Image.new("RGB", (71, 50)).save(tmp_path / "a.png")
    image = {"id": 1, "file_name": "a.png", "width": 71, "height": 50}
    content = {"images": [image], "annotations": annotations, "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    found = load_annotations(tmp_path, tmp_path / "a.json")
    _, target = CocoDetection(found, eval_transform())[0]
    far = 1e5
    assert target["boxes"].tolist() == [[20, 10, 32, 18], [0, 0, 6, 50]]
    expected = [[20, 10, 32, 18], [50, 30, 71 + far, 50 + far], [-far, -far, 6, 50 + far]]
    assert target["ignored"].tolist() == expected
    assert target["ignored"].dtype == torch.float32

    transform = TrainTransform(lambda size, fill: [v2.Resize((101, 85))], fill=(0, 0, 0), horizontal_flip=0.5)
    moved = CocoDetection(found, transform)
    seen = set()
    for seed in range(8):
        torch.manual_seed(seed)
        _, target = moved[0]
        assert torch.allclose(target["ignored"][0], target["boxes"][0])
        assert type(target["ignored"]) is torch.Tensor
        seen.add(target["ignored"][0, 0].item())
    assert len(seen) == 2


def test_ignored_boxes_outside_of_a_crop_are_removed():
    ignored = IgnoredBoxes.of(torch.tensor([[0.0, 0, 10, 10], [30, 20, 50, 40]]), (50, 60))
    window = (15, 25, 20, 30)
    image = v2.functional.crop(tv_tensors.Image(torch.zeros(3, 50, 60)), *window)
    assert with_ignored_inside(image, {"ignored": v2.functional.crop(ignored, *window)})[1]["ignored"].tolist() == [
        [5, 5, 25, 20 + 1e5]
    ]
