"""Items of the data set obey torchvision's detector contract."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from data import CocoDetection, ImageError, eval_transform, load_annotations

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
    assert target["labels"].tolist() == [2, 1], "labels count the category ids in rising order from 1"
    assert target["image_id"] == 11


@pytest.mark.parametrize("index", [1, 2], ids=["no box", "crowd alone"])
def test_image_without_a_box_to_learn_from(annotations, index):
    _, target = CocoDetection(annotations, eval_transform())[index]
    assert tuple(target["boxes"].shape) == (0, 4)
    assert target["boxes"].dtype == torch.float32
    assert tuple(target["labels"].shape) == (0,)
    assert target["labels"].dtype == torch.int64


@pytest.mark.parametrize(("keep", "ids"), [(True, [11, 12, 13]), (False, [11])])
def test_keep_empty(annotations, keep, ids):
    dataset = CocoDetection(annotations, eval_transform(), keep_empty=keep)
    assert [dataset[index][1]["image_id"] for index in range(len(dataset))] == ids
    assert dataset.aspect_ratios == [2.0, 0.5, 0.8][: len(ids)]


def test_aspect_ratio_of_an_image_without_a_stated_size(annotations):
    dataset = CocoDetection(annotations, eval_transform())
    dataset.entries = [{"id": 1, "file_name": "a.png", "width": 30}, {"id": 2, "file_name": "b.png"}]
    assert dataset.aspect_ratios == [1.0, 1.0]


def test_transform_gets_picture_and_target(annotations):
    dataset = CocoDetection(annotations, lambda image, target: (image.size, target["boxes"].canvas_size))
    assert dataset[0] == ((80, 40), (40, 80))


def test_vanished_image_is_named(annotations):
    dataset = CocoDetection(annotations, eval_transform())
    dataset.entries = [{"id": 11, "file_name": "gone.png"}]
    with pytest.raises(ImageError, match=r"gone\.png does not exist"):
        dataset[0]
