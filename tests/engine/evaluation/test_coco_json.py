"""COCO files of detections, as pycocotools reads them, and image files matched to an annotation file."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as rle
from pycocotools.coco import COCO

from engine.evaluation.coco_json import coco_dataset, match_files

IMAGES = [
    {"id": 4, "file_name": "a/x.jpg", "width": 60, "height": 40},
    {"id": 9, "file_name": "b/x.jpg", "width": 50, "height": 30},
]
CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 7, "name": "dog"}]


def read(tmp_path, values):
    (tmp_path / "found.json").write_text(json.dumps(values))
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(tmp_path / "found.json")


def test_pycocotools_reads_it(tmp_path):
    shape = np.zeros((40, 60), np.uint8)
    shape[10:15, 20:40] = 1
    shape[12, 20] = 0
    mask = rle.encode(np.asfortranarray(shape))
    mask["counts"] = mask["counts"].decode()
    results = [
        {"image_id": 9, "category_id": 7, "bbox": [1.5, 2.0, 10.0, 4.0], "score": 0.75},
        {"image_id": 4, "category_id": 1, "bbox": [20, 10, 20, 5], "score": 0.5, "segmentation": mask},
    ]
    coco = read(tmp_path, coco_dataset(IMAGES, results, CATEGORIES, description="a test"))
    assert coco.dataset["info"] == {"description": "a test"}
    assert coco.getImgIds() == [4, 9]
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == ["cat", "dog"]
    (box,) = coco.loadAnns(coco.getAnnIds(imgIds=9))
    assert (box["bbox"], box["score"], box["area"], box["iscrowd"]) == ([1.5, 2.0, 10.0, 4.0], 0.75, 40.0, 0)
    assert box["segmentation"] == []
    (masked,) = coco.loadAnns(coco.getAnnIds(catIds=1))
    assert masked["area"] == shape.sum() == 99
    assert np.array_equal(coco.annToMask(masked), shape)
    assert sorted(coco.anns) == [1, 2]  # pycocotools takes a match with 0 for none
    assert results[0].keys() == {"image_id", "category_id", "bbox", "score"}


def test_nothing_found(tmp_path):
    coco = read(tmp_path, coco_dataset(IMAGES, [], CATEGORIES, description=""))
    assert coco.getImgIds() == [4, 9]
    assert coco.getAnnIds() == []


def test_images_are_matched_by_the_end_of_their_path():
    files = [Path("/data/b/x.jpg"), Path("/data/a/x.jpg")]
    assert [entry["id"] for entry in match_files(files, IMAGES, Path("val.json"))] == [9, 4]
    # of two that fit, the longer one
    short = {"id": 1, "file_name": "x.jpg"}
    assert [entry["id"] for entry in match_files([*files, Path("/c/x.jpg")], [short, *IMAGES], Path("v"))] == [9, 4, 1]


def test_images_without_an_entry():
    files = [Path("/data/b/x.jpg"), Path("/data/cb/x.jpg"), *(Path(f"/data/{n}.jpg") for n in range(3))]
    with pytest.raises(ValueError, match=r"4 of 5 images are not in v\.json: /data/cb/x.jpg, .*, \.\.\."):
        match_files(files, IMAGES, Path("v.json"))
    with pytest.raises(ValueError, match=r"/1/b/x.jpg and /2/b/x.jpg are both image 9 of v.json"):
        match_files([Path("/1/b/x.jpg"), Path("/2/b/x.jpg")], IMAGES, Path("v.json"))
