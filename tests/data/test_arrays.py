"""Annotations packed into arrays equal the annotations of the file."""

import copy
import json
import pickle
import pickletools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO
from torchvision.ops import clip_boxes_to_image

from data import CocoDetection, load_annotations
from data.arrays import PackedBytes

WIDTH, HEIGHT = 37, 23
IDS = st.integers(-(2**63), 2**63 - 1)
NAMES = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/\\:"), min_size=1, max_size=8)


@st.composite
def annotations(draw, categories: list[int], images: list[int]) -> dict:
    x, y = draw(st.floats(0, WIDTH - 2)), draw(st.floats(0, HEIGHT - 2))
    # boxes within the first pixel seem to be fractions of the image
    w, h = draw(st.floats(1.5, WIDTH - x)), draw(st.floats(1.5, HEIGHT - y))
    runs = draw(st.integers(1, WIDTH * HEIGHT - 1))
    polygon = [x, y, x + w, y + h / 3, x + w / 2, y + h]
    return {
        "image_id": draw(st.sampled_from(images)),
        "category_id": draw(st.sampled_from(categories)),
        "bbox": [x, y, w, h],
        "iscrowd": int(draw(st.integers(0, 4)) == 0),
        "segmentation": draw(
            st.sampled_from([
                [polygon],
                [polygon, [1, 1, 9, 1, 9, 9]],
                {"size": [HEIGHT, WIDTH], "counts": [runs, WIDTH * HEIGHT - runs]},
            ])
        ),
    }  # fmt: skip


@st.composite
def files(draw) -> dict:
    """Draw COCO files with sparse ids in any order, crowd regions, and images without any annotation."""
    images = draw(st.lists(IDS, min_size=1, max_size=5, unique=True))
    categories = draw(st.lists(IDS, min_size=1, max_size=4, unique=True))
    return {
        "images": [
            {"id": image_id, "file_name": f"{draw(NAMES)}.png", "width": WIDTH, "height": HEIGHT} for image_id in images
        ],
        "categories": [{"id": category} for category in categories],
        "annotations": draw(st.lists(annotations(categories, images), max_size=12)),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("packed")


def cut(x: float, y: float, width: float, height: float) -> list[float]:
    """Clip a box to the image, on the right and at the bottom by rounding."""
    return [x, y, min(x + width, WIDTH) - x, min(y + height, HEIGHT) - y]


def load(folder: Path, content: dict, **options):
    (folder / "a.json").write_text(json.dumps(content))
    return load_annotations(folder, folder / "a.json", check_images="never", **options)


@given(content=files(), keep_images_without_boxes=st.booleans())
def test_items_are_those_of_a_loop_over_the_file(folder, content, keep_images_without_boxes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "data.coco.read_image", lambda path, size, options: (paths.append(path), torch.zeros(3, *size[::-1]))[1]
        )
        paths = []
        found = load(folder, copy.deepcopy(content), invalid_masks="raise")
        dataset = CocoDetection(
            found, lambda *item, **_: item, keep_images_without_boxes=keep_images_without_boxes, masks=True
        )
        targets = [dataset[index][1] for index in range(len(dataset))]
    api = COCO()
    api.dataset = {
        **content,
        "annotations": [a | {"id": number, "area": 1} for number, a in enumerate(content["annotations"], 1)],
    }
    api.createIndex()
    label = {category: number for number, category in enumerate(sorted(c["id"] for c in content["categories"]), 1)}
    expected = []
    for entry in content["images"]:
        mine = [a for a in api.dataset["annotations"] if a["image_id"] == entry["id"] and not a["iscrowd"]]
        if mine or keep_images_without_boxes:
            expected.append((entry, mine))
    assert paths == [folder / entry["file_name"] for entry, _ in expected]
    for target, (entry, mine) in zip(targets, expected, strict=True):
        boxes = torch.tensor([cut(*a["bbox"]) for a in mine], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        assert target["boxes"].dtype == torch.float32
        assert torch.equal(target["boxes"].as_subclass(torch.Tensor), boxes)
        assert target["labels"].dtype == torch.int64
        assert target["labels"].tolist() == [label[a["category_id"]] for a in mine]
        assert target["image_id"] == entry["id"]
        crowds = [a["bbox"] for a in api.dataset["annotations"] if a["image_id"] == entry["id"] and a["iscrowd"]]
        regions = torch.tensor([cut(*bbox) for bbox in crowds], dtype=torch.float32).reshape(-1, 4)
        regions[:, 2:] += regions[:, :2]
        ignored = clip_boxes_to_image(target.get("ignored", regions[:0]), (HEIGHT, WIDTH))
        assert torch.equal(ignored, regions)
        masks = np.array([api.annToMask(a) for a in mine], dtype=np.uint8).reshape(-1, HEIGHT, WIDTH)
        assert np.array_equal(target["masks"].numpy(), masks)


@given(st.lists(st.binary(max_size=5), max_size=8))
def test_packed_bytes_are_a_list(items):
    packed = PackedBytes(items)
    assert len(packed) == len(items)
    assert [packed[index] for index in range(len(items))] == items


def test_changing_an_item_does_not_change_the_next_one(folder):
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}],
        "categories": [{"id": 1}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}],
    }
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "a.png")
    dataset = CocoDetection(load(folder, content), lambda image, target, **_: (image, target))
    for values in (dataset[0][1]["boxes"], dataset[0][1]["labels"]):
        values += 5
    assert dataset[0][1]["boxes"].tolist() == [[1, 2, 4, 6]]
    assert dataset[0][1]["labels"].tolist() == [1]


def test_the_number_of_objects_does_not_grow_with_the_file(folder):
    """A loader worker would copy every object that Python counts references of."""

    def pickled_objects(images: int) -> int:
        content = {
            "images": [{"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in range(images)],
            "categories": [{"id": 1}],
            "annotations": [
                {"image_id": i, "category_id": 1, "bbox": [1, 2, 3, 4], "segmentation": [[1, 1, 9, 1, 9, 9]]}
                for i in range(images)
            ],
        }
        dataset = CocoDetection(load(folder, content, invalid_masks="raise"), None, masks=True)
        return sum(1 for _ in pickletools.genops(pickle.dumps(dataset)))

    assert pickled_objects(3) == pickled_objects(300)
