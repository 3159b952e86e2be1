"""A COCO file loads unchanged, or an error reports the problem, its number of occurrences and the first ones."""

import copy
import hashlib
import itertools
import json
import math
import os
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from data import (
    CocoAnnotations,
    CocoDetection,
    DatasetError,
    eval_transform,
    inspect_dataset,
    load_annotations,
    load_image_list,
)
from data.objects import INVALID_BOX_POLICIES

WIDTH, HEIGHT = 64, 48
# ids are sparse and out of order, as in files of other tools
CONTENT = {
    "images": [
        {"id": image_id, "file_name": f"{name}.png", "width": WIDTH, "height": HEIGHT}
        for image_id, name in ((7, "a"), (3, "b"), (20, "c"))
    ],
    "categories": [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
    "annotations": [
        {"id": 0, "image_id": 7, "category_id": 90, "bbox": [1, 2, 30, 20], "area": 500.5, "iscrowd": 0},
        {"id": 5, "image_id": 7, "category_id": 1, "bbox": [10.5, 4, 20.25, 40]},
        {"id": 2, "image_id": 20, "category_id": 18, "bbox": [0, 0, 64, 48], "area": 3072, "iscrowd": 0},
    ],
}
ODD_VALUES = [None, True, 0, -1, 2.5, 1e300, math.nan, math.inf, 10**400, "", "x", "\0", "a" * 300, [], [1, 2], {}]
REMOVED = object()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for entry in CONTENT["images"]:
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / entry["file_name"])
    return folder


def load(folder: Path, content: Any, **options: Any) -> CocoAnnotations:
    file = folder / "annotations.json"
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return load_annotations(folder, file, **options)


def changed(*path: str | int, to: Any = REMOVED) -> dict:
    """Return `CONTENT` with one value changed or removed."""
    content = copy.deepcopy(CONTENT)
    place = content
    for key in path[:-1]:
        place = place[key]
    if to is REMOVED:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    return content


def with_boxes(*boxes: Any) -> dict:
    annotations = [{"image_id": 7, "category_id": 1, "bbox": box} for box in boxes]
    return copy.deepcopy(CONTENT) | {"annotations": annotations}


def boxes_of(found: CocoAnnotations, image_id: int) -> list[list[float]]:
    """Return the training boxes (x, y, width, height) of an image."""
    arrays = found.arrays
    boxes = arrays.boxes[arrays.span(arrays.image_ids.tolist().index(image_id))].tolist()
    return [[left, top, right - left, bottom - top] for left, top, right, bottom in boxes]


def test_arrays_have_the_content_of_the_file(folder):
    found = load(folder, CONTENT)
    assert found.category_ids == [1, 18, 90]
    assert found.class_names == ["person", "dog", "toothbrush"]
    assert found.arrays.image_ids.tolist() == [7, 3, 20]
    assert boxes_of(found, 7) == [[1, 2, 30, 20], [10.5, 4, 20.25, 40]]
    assert boxes_of(found, 3) == []
    assert (found.fixed_boxes, found.image_dir, found.path) == (0, folder, folder / "annotations.json")


def test_raw_file_has_what_evaluation_needs(folder):
    annotations = load(folder, CONTENT).raw["annotations"]
    assert [a["id"] for a in annotations] == [1, 2, 3], "pycocotools ignores matches with id 0"
    assert [a["area"] for a in annotations] == [500.5, 20.25 * 40, 3072]
    assert [a["iscrowd"] for a in annotations] == [0, 0, 0]


def test_a_category_without_a_name_is_named_by_its_id(folder):
    content = copy.deepcopy(CONTENT)
    content["categories"] = [{"id": 90, "name": None}, {"id": 1}, {"id": 18, "name": 7}]
    assert load(folder, content).class_names == ["1", "7", "90"]


def test_digest_depends_on_the_bytes_of_the_file(folder):
    found = load(folder, CONTENT)
    assert found.sha256 == hashlib.sha256((folder / "annotations.json").read_bytes()).hexdigest()
    # other spaces, the same content
    assert load(folder, json.dumps(CONTENT, indent=1).encode()).sha256 != found.sha256
    assert load(folder, CONTENT).sha256 == found.sha256
    assert inspect_dataset(folder, folder / "annotations.json").usable.sha256 == found.sha256


def test_missing_area_is_never_below_zero(folder):
    content = with_boxes(VALID, [5, 5, 9, -3], [5, 5, -9, -3])
    for annotation in content["annotations"][1:]:
        annotation["iscrowd"] = 1
    assert [a["area"] for a in load(folder, content).raw["annotations"]] == [256, 0, 0]


def test_empty_optional_fields_count_as_missing(folder):
    content = copy.deepcopy(CONTENT)
    content["annotations"][0] |= {"id": None, "area": None, "iscrowd": None}
    content["annotations"][1] |= {"id": None, "iscrowd": False}
    content["images"][0] |= {"width": None}
    annotations = load(folder, content).raw["annotations"]
    assert [(a["id"], a["area"], a["iscrowd"]) for a in annotations] == [(1, 600, 0), (2, 810, 0), (3, 3072, 0)]


def test_crowd_regions_are_kept_for_evaluation_only(folder):
    content = copy.deepcopy(CONTENT)
    content["annotations"][0]["iscrowd"] = 1
    content["annotations"].append({"image_id": 3, "category_id": 1, "iscrowd": 1, "bbox": [-9, 0, 5, 5]})
    content["annotations"].append({"image_id": 3, "category_id": 1, "iscrowd": 1})
    found = load(folder, content)
    assert found.arrays.counts.tolist() == [1, 0, 1]
    assert found.crowd_regions == 2
    assert [a["iscrowd"] for a in found.raw["annotations"]] == [1, 0, 0, 1], "the annotation without a box is dropped"
    assert found.fixed_boxes == 0


@pytest.mark.parametrize("what", ["image folder", "annotation file"])
def test_missing_path_is_named_as_written_and_as_resolved(folder, what, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "annotations.json").write_text("{}")
    places = {"image folder": ("no/where", "annotations.json"), "annotation file": (".", "no/where")}[what]
    with pytest.raises(DatasetError) as error:
        load_annotations(*places, download_hint="make shapes")
    resolved = (folder / "no/where").resolve()
    assert str(error.value) == f"{what} no/where does not exist (resolved: {resolved}); to get it: make shapes"


@pytest.mark.parametrize("swapped", [True, False])
def test_a_file_instead_of_a_folder_is_an_error(folder, swapped):
    file = folder / "annotations.json"
    file.write_text("{}")
    with pytest.raises(DatasetError, match="image folder" if swapped else "annotation file"):
        load_annotations(*((file, file) if swapped else (folder, folder)))


def test_a_special_file_is_named_and_never_waited_for(folder, tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "device.json").symlink_to("/dev/zero")
    (tmp_path / "loop.json").symlink_to(tmp_path / "loop.json")
    for name, reason in (
        ("pipe.json", "must be a regular file, got a named pipe"),
        ("device.json", "must be a regular file, got a device"),
        ("loop.json", "does not exist"),
        ("a" * 300, "does not exist"),
        ("a\0b", "does not exist"),
    ):
        for read in (load_annotations, inspect_dataset, load_image_list):
            with pytest.raises(DatasetError, match=f"annotation file .*{reason}"):
                read(folder, tmp_path / name)
        with pytest.raises(DatasetError, match=r"image folder .* does not exist"):
            load_annotations(tmp_path / name, folder / "annotations.json")


def test_an_unknown_policy_is_an_error(folder):
    with pytest.raises(ValueError, match="one of raise, clip, drop, keep, got 'ignore'"):
        load(folder, CONTENT, invalid_boxes="ignore")


def test_unreadable_file_is_named(folder, monkeypatch):
    def refuse(path: Path, flags: int) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(DatasetError, match=r"annotations\.json cannot be read: .*Permission denied"):
        load(folder, CONTENT)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not valid JSON"),
        (b'{"images": [', "is not valid JSON"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        ([], "not a COCO instances file: the list 'images' is missing"),
        (changed("images"), "the list 'images' is missing"),
        (changed("categories"), "the list 'categories' is missing"),
        (changed("annotations"), "the list 'annotations' is missing"),
        (changed("annotations", to={}), "the list 'annotations' is missing"),
        (changed("images", to=[]), "must have at least one entry in 'images'"),
        (CONTENT | {"categories": [], "annotations": []}, "must have at least one entry in 'categories'"),
        (changed("images", 1, to="b.png"), r"images\[1\] must be a mapping, got 'b.png'"),
        (changed("images", 1, "id"), r"images\[1\] must have 'id' of type int, got None"),
        (changed("images", 1, "id", to="3"), r"images\[1\] must have 'id' of type int, got '3'"),
        (changed("images", 1, "id", to=True), r"images\[1\] must have 'id' of type int, got True"),
        (changed("images", 0, "file_name", to=7), r"images\[0\] must have 'file_name' of type str, got 7"),
        (changed("images", 2, "width", to="64"), r"images\[2\] must have 'width' of type int or float, got '64'"),
        (changed("categories", 2, "id", to=1.5), r"categories\[2\] must have 'id' of type int, got 1.5"),
        (changed("annotations", 0, "image_id"), r"annotations\[0\] must have 'image_id'"),
        (changed("annotations", 2, "category_id"), r"annotations\[2\] must have 'category_id'"),
        (changed("annotations", 1, "iscrowd", to="0"), r"annotations\[1\] must have 'iscrowd' of type int or bool"),
        (
            changed("images", 1, "id", to=2**63),
            r"images\[1\] must have 'id' in the range -9.22337e\+18 <= id < 9.22337e\+18, got 92",
        ),
        (
            changed("annotations", 1, "image_id", to=-(10**400)),
            r"annotations\[1\] must have 'image_id' of type int, got -inf",
        ),
        (
            changed("images", 0, "width", to=-64),
            r"images\[0\] must have 'width' in the range 0 <= width < 100000, got -64",
        ),
        (
            changed("images", 0, "height", to=100_000),
            r"images\[0\] must have 'height' in the range 0 <= height < 100000, got 100000",
        ),
        (
            changed("images", 0, "height", to=math.nan),
            r"images\[0\] must have 'height' in the range 0 <= height < 100000, got nan",
        ),
        (
            changed("annotations", 0, "iscrowd", to=2),
            r"annotations\[0\] must have 'iscrowd' in the range 0 <= iscrowd < 2, got 2",
        ),
        (
            changed("annotations", 0, "iscrowd", to=0.5),
            r"annotations\[0\] must have 'iscrowd' of type int or bool, got 0.5",
        ),
        (changed("images", 1, "id", to=3.5), r"images\[1\] must have 'id' of type int, got 3.5"),
        (changed("categories", 0, "name", to="a" * 3_000_000), r"'name' of at most 1000 characters, got 'aaa[a.]+'$"),
        (changed("categories", 0, "name", to=True), r"categories\[0\] must have 'name' of type str or int, got True"),
        (
            changed("categories", 0, "name", to=["a"]),
            r"categories\[0\] must have 'name' of type str or int, got \['a'\]",
        ),
        (
            changed("categories", 0, "name", to="\ud800"),
            r"categories\[0\] must have 'name' of valid Unicode, got '\\ud800'",
        ),
        (changed("images", 0, "file_name", to="\udc80.png"), r"images\[0\] must have 'file_name' of valid Unicode"),
        (changed("images", 1, "id", to=7), "duplicate ids of images: 1; the first: 7"),
        (changed("categories", 1, "id", to=90), "duplicate ids of categories: 1; the first: 90"),
        (changed("annotations", 1, "image_id", to=8), r"image_id is not in images: 1; the first: 5 .*8"),
        (changed("annotations", 2, "category_id", to=2), r"category_id is not in .*: 1; the first: 2 .*2"),
        (
            changed("images", 0, "file_name", to="../a.png"),
            r"file names outside of .* folder: 1; a name must be relative .*; the first: \.\./a",
        ),
        (changed("images", 0, "file_name", to="/etc/a.png"), "file names outside of the image folder: 1"),
        (changed("images", 0, "file_name", to="x\\..\\..\\a.png"), "file names outside of the image folder: 1"),
        (changed("images", 0, "file_name", to="C:a.png"), "file names outside of the image folder: 1"),
        (changed("images", 0, "file_name", to="C:\\a\\a.png"), "file names outside of the image folder: 1"),
        (
            changed("images", 0, "file_name", to="x" * 3_000_000),
            r"invalid images: 1; the first: .{1,500}$",
        ),
        (changed("images", 0, "file_name", to="a" * 300), "invalid images: 1; the first: .*too long"),
    ],
)
def test_an_invalid_file_is_an_error(folder, content, message):
    with pytest.raises(DatasetError, match=rf"annotations\.json.*{message}"):
        load(folder, content)


def test_missing_images_are_counted_and_named(folder):
    content = copy.deepcopy(CONTENT)
    for index in range(5):
        content["images"].append({"id": 100 + index, "file_name": f"lost{index}.png"})
    message = r"images missing in .*: 5 of 8; to get it: make coco; the first: lost0.png, lost1.png, .*, \.\.\.$"
    with pytest.raises(DatasetError, match=message):
        load(folder, content, download_hint="make coco")
    assert len(load(folder, content, check_images="never").arrays) == 8


def test_broken_image_is_named_before_training(folder):
    whole = (folder / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    content = changed("images", 1, "file_name", to="cut.png")
    content["images"][2]["width"] = 65
    with pytest.raises(
        DatasetError, match=r"invalid images: 2; .*cut\.png cannot be read.*c\.png must have 65x48 pixels.*, got 64x48"
    ):
        load(folder, content)
    assert load(folder, content, check_images="never").raw["images"] == content["images"]


def test_progress_wraps_the_check_of_every_image(folder):
    seen = []
    load(folder, CONTENT, progress=lambda entries: (seen.append(entry["file_name"]) or entry for entry in entries))
    assert seen == ["a.png", "b.png", "c.png"]


# the invalid box after clipping
INVALID = {
    "no_width": ([5, 5, 0, 9], "must have a width and height above 0", None),
    "negative_height": ([5, 5, 9, -3], "must have a width and height above 0", None),
    "out_on_the_right": ([60, 5, 9, 9], "is not inside of its image of 64x48", [60, 5, 4, 9]),
    "out_on_top": ([5, -4, 9, 9], "is not inside of its image of 64x48", [5, 0, 9, 5]),
    "out_at_the_bottom": ([5, 40, 9, 20], "is not inside of its image of 64x48", [5, 40, 9, 8]),
    "all_outside": ([70, 5, 9, 9], "is not inside of its image of 64x48", None),
    "just_outside": ([64, 5, 0.5, 9], "is not inside of its image of 64x48", None),
    "nan": ([5, math.nan, 9, 9], "is not a list of four numbers in pixels", None),
    "infinite": ([5, 5, math.inf, 9], "is not a list of four numbers in pixels", None),
    "wider_than_any_picture": ([5, 5, 1e5, 9], "is not a list of four numbers in pixels", None),
    "too_large_for_a_float": ([5, 5, 10**400, 9], "is not a list of four numbers in pixels", None),
    "three_numbers": ([5, 5, 9], "is not a list of four numbers in pixels", None),
    "text": (["5", 5, 9, 9], "is not a list of four numbers in pixels", None),
    "missing": (None, "is not a list of four numbers in pixels", None),
}
VALID = [8, 8, 16, 16]


@pytest.mark.parametrize("name", INVALID)
def test_invalid_box_by_policy(folder, name):
    box, problem, clipped = INVALID[name]
    content = with_boxes(VALID, box, VALID)
    message = rf"invalid boxes .*: 1; fix them, .*; the first: annotation 2 in image 7: .* {problem}$"
    with pytest.raises(DatasetError, match=message):
        load(folder, content, invalid_boxes="raise")
    for policy, left in (("drop", None), ("clip", clipped)):
        found = load(folder, content, invalid_boxes=policy)
        assert boxes_of(found, 7) == [VALID, *([left] if left else []), VALID], policy
        assert found.fixed_boxes == 1


def test_the_message_about_a_box_can_be_encoded(folder):
    with pytest.raises(DatasetError, match=r"image 7: '\\ud800' is not a list") as error:
        load(folder, with_boxes("\ud800"))
    str(error.value).encode()


def test_invalid_boxes_are_counted(folder):
    with pytest.raises(
        DatasetError, match=r"invalid .*: 4; .* annotation 1 .* annotation 2 .* annotation 3 .*, \.\.\.$"
    ):
        load(folder, with_boxes(*[[5, 5, 0, 9]] * 4))


@pytest.mark.parametrize(
    ("box", "inside"),
    [
        ([-0.9, -1, 10, 10], [0, 0, 9.1, 9]),
        ([60, 40, 4.9, 9], [60, 40, 4, 8]),
        ([0, 0, 64, 48], [0, 0, 64, 48]),
    ],
)
def test_rounding_is_clipped_without_a_warning(folder, box, inside):
    found = load(folder, with_boxes(box))
    assert boxes_of(found, 7)[0] == pytest.approx(inside, rel=1e-6)
    assert found.fixed_boxes == 0
    assert found.raw["annotations"][0]["bbox"] == box, "evaluation uses the box of the file"


UNDECLARED = [{"width": 0, "height": 0}, {"width": None}, {"height": 0}, {"width": REMOVED, "height": REMOVED}]


@pytest.mark.parametrize("stated", UNDECLARED)
@pytest.mark.parametrize("check_images", ["always", "never"])
def test_sizes_that_the_file_does_not_declare_are_measured(folder, stated, check_images):
    content = with_boxes(VALID, [50, 5, 100, 9])
    image = content["images"][0]
    for side, value in stated.items():
        if value is REMOVED:
            del image[side]
        else:
            image[side] = value
    with pytest.raises(DatasetError, match=r"annotation 2 in image 7: .* is not inside of its image of 64x48"):
        load(folder, content, check_images=check_images)
    found = load(folder, content, check_images=check_images, invalid_boxes="clip")
    assert boxes_of(found, 7) == [VALID, [50, 5, 14, 9]]
    assert warnings_of(found)["images without width and height, measured in the image files"] == ["a.png"]
    content["annotations"][1]["bbox"] = VALID
    for annotation in content["annotations"]:
        annotation["segmentation"] = OUTLINES["polygon"]
    assert load(folder, content, check_images=check_images, invalid_masks="raise").dropped_masks == 0


def test_sizes_are_measured_after_rotation_by_exif(folder, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "turned.jpg", exif=exif)
    content = with_boxes([2, 50, 20, 14]) | {"images": [{"id": 7, "file_name": "turned.jpg"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert load_annotations(tmp_path, tmp_path / "a.json").arrays.size(0) == (HEIGHT, WIDTH)


def warnings_of(found: CocoAnnotations) -> dict[str, list[str]]:
    return {problem.what: problem.found for problem in found.warnings}


WHOLE = "whole numbers written as fractions, read as integers"
IDS = "annotation ids that are missing, repeated or no integers, counted from 1 instead"
AREAS = "annotations without a valid area, which get the area of their box"


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("images", 0, "id"), 7.0),
        (("categories", 1, "id"), 1.0),
        (("annotations", 0, "image_id"), 7.0),
        (("annotations", 1, "category_id"), 1.0),
        (("annotations", 0, "iscrowd"), 0.0),
        (("annotations", 0, "id"), 4.0),
    ],
)
def test_whole_numbers_are_integers(folder, place, value):
    found = load(folder, changed(*place, to=value))
    expected = load(folder, changed(*place, to=int(value)))
    assert found.arrays.boxes.tolist() == expected.arrays.boxes.tolist()
    assert found.raw == expected.raw
    assert warnings_of(found)[WHOLE] == [f"{place[0]}[{place[1]}] has {place[2]} {value}"]
    assert WHOLE not in warnings_of(expected)


def test_a_crowd_region_may_have_a_whole_number(folder):
    assert load(folder, changed("annotations", 0, "iscrowd", to=1.0)).crowd_regions == 1


@pytest.mark.parametrize("ids", [(1, 1, 2), (None, 1, 2), (REMOVED, 1, 2), ("1", "2", "2"), ([], {}, 2), (True, 1, 2)])
def test_ids_of_annotations_need_no_meaning(folder, ids):
    content = copy.deepcopy(CONTENT)
    for annotation, key in zip(content["annotations"], ids, strict=True):
        annotation["id"] = key
        if key is REMOVED:
            del annotation["id"]
    found = load(folder, content)
    assert [(a["id"], a["file_id"]) for a in found.raw["annotations"]] == [(1, 1), (2, 2), (3, 3)]
    assert 1 <= len(warnings_of(found)[IDS]) <= 3
    assert found.arrays.boxes.tolist() == load(folder, CONTENT).arrays.boxes.tolist()
    assert IDS not in warnings_of(load(folder, CONTENT))


@pytest.mark.parametrize("area", [None, REMOVED, math.nan, math.inf, -1, 10**400, 1e10, "9", [], True])
def test_areas_that_are_not_valid_are_those_of_the_box(folder, area):
    found = load(folder, changed("annotations", 0, "area", to=area))
    assert found.raw["annotations"][0]["area"] == 600
    assert warnings_of(found)[AREAS][0].startswith("annotation 0 in image 7 has area ")


@pytest.mark.parametrize("outline", ["polygon", "runs", "packed"])
@pytest.mark.parametrize("bbox", [None, REMOVED, []])
@pytest.mark.parametrize("size", [{}, {"width": None}])
def test_a_missing_box_is_the_box_of_the_mask(folder, outline, bbox, size):
    segmentation = OUTLINES[outline]
    content = with_outlines(segmentation)
    content["annotations"][0]["bbox"] = bbox
    if bbox is REMOVED:
        del content["annotations"][0]["bbox"]
    content["images"][0] |= size
    found = load(folder, content)
    expected = coco_mask.toBbox(coco_mask.encode(EVERYWHERE)).tolist() if outline == "packed" else None
    expected = {"polygon": [1, 1, 8, 8], "runs": [0, 5, 1, 10], "packed": expected}[outline]
    assert boxes_of(found, 7) == [expected]
    assert warnings_of(found)["annotations without a box, which get the box of their mask"] == [
        "annotation 1 in image 7"
    ]


def test_a_malformed_box_is_not_replaced_by_its_mask(folder):
    content = with_outlines(OUTLINES["polygon"])
    content["annotations"][0]["bbox"] = ["1", "1", "8", "8"]
    with pytest.raises(DatasetError, match="is not a list of four numbers"):
        load(folder, content)


@pytest.mark.parametrize(
    ("names", "expected", "what"),
    [
        (("a", None, "b"), ["a", "18", "b"], "categories without a name, named by their id"),
        (("a", "", "b"), ["a", "18", "b"], "categories without a name, named by their id"),
        (("a", " \t", "b"), ["a", "18", "b"], "categories without a name, named by their id"),
        (("a", REMOVED, "b"), ["a", "18", "b"], "categories without a name, named by their id"),
        (("a", "b", "a"), ["a (1)", "b", "a (90)"], "duplicate category names, completed with the id"),
        (("90", "b", None), ["90 (1)", "b", "90 (90)"], "duplicate category names, completed with the id"),
    ],
)
def test_every_category_has_a_name_of_its_own(folder, names, expected, what):
    content = copy.deepcopy(CONTENT)
    categories = [{"id": key, "name": name} for key, name in zip((1, 18, 90), names, strict=True)]
    content["categories"] = [{k: v for k, v in category.items() if v is not REMOVED} for category in categories]
    found = load(folder, content)
    assert found.class_names == expected
    assert [category["name"] for category in found.raw["categories"]] == expected
    assert what in warnings_of(found)


@pytest.mark.parametrize("name", ["sub\\a.png", ".\\sub\\a.png", "sub\\..\\sub\\a.png"])
def test_backslashes_are_folders_where_only_that_names_a_file(folder, name):
    (folder / "sub").mkdir(exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "sub/a.png")
    content = changed("images", 0, "file_name", to=name)
    if ".." in name:
        with pytest.raises(DatasetError, match="file names outside"):
            load(folder, content)
        return
    found = load(folder, content)
    assert (folder / found.arrays.file_name(0)).samefile(folder / "sub/a.png")
    assert warnings_of(found)["file names with backslashes, read as folders"] == [name]


def test_a_file_name_may_contain_a_backslash(folder):
    (folder / "sub").mkdir(exist_ok=True)
    for name in ("sub/b.png", "sub\\b.png"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / name)
    found = load(folder, changed("images", 0, "file_name", to="sub\\b.png"))
    assert found.arrays.file_name(0) == "sub\\b.png"
    assert found.warnings == load(folder, CONTENT).warnings


@pytest.mark.parametrize(
    ("ids", "hint"),
    [
        ((0, 1, 2, 3, 4), "category_id runs from 0 to 4 and the ids of categories from 1 to 5, .* shifted by one"),
        ((0, 0), "^(?!.*shifted)"),
        ((0,), "category_id runs from 0 to 0 and the ids of categories from 1 to 1, .* shifted by one"),
        ((2, 3, 4, 5, 6), "category_id runs from 2 to 6 and the ids of categories from 1 to 5, .* shifted by one"),
        ((2, 9), "^(?!.*shifted)"),
    ],
)
def test_shifted_categories_are_recognised(folder, ids, hint):
    content = with_boxes(*[VALID] * len(ids))
    content["categories"] = [{"id": key, "name": f"c{key}"} for key in range(1, 1 + len(ids))]
    for annotation, key in zip(content["annotations"], ids, strict=True):
        annotation["category_id"] = key
    with pytest.raises(DatasetError, match=rf"category_id is not in categories.*{hint}" if hint[0] != "^" else hint):
        load(folder, content)


def test_evaluation_alone_keeps_boxes_out_of_their_image(folder):
    outside = [60, 5, 9, 9]
    found = load(folder, with_boxes(VALID, outside), invalid_boxes="keep")
    assert [a["bbox"] for a in found.raw["annotations"]] == [VALID, outside]
    assert warnings_of(found)["boxes that are not inside of their image"] == [
        "annotation 2 in image 7: [60, 5, 9, 9] is not inside of its image of 64x48"
    ]
    for box in (["60", 5, 9, 9], None, [5, 5, 0, 9], [5, 5, -9, 9]):
        with pytest.raises(DatasetError, match=r"invalid boxes .*: 1; fix them; the first: annotation 2"):
            load(folder, with_boxes(VALID, box), invalid_boxes="keep")


@pytest.mark.parametrize("policy", ["clip", "drop"])
def test_evaluation_has_the_boxes_of_the_policy(folder, policy):
    content = with_boxes(VALID, [60, 5, 9, 9], ["1", 1, 1, 1], [5, 5, -9, 9])
    found = load(folder, content, invalid_boxes=policy)
    kept = [a["bbox"] for a in found.raw["annotations"]]
    assert kept == ([VALID, [60, 5, 4, 9]] if policy == "clip" else [VALID])
    (invalid,) = (problem for problem in found.warnings if problem.what.startswith("invalid boxes"))
    assert len(invalid.found) == 3
    assert "data.invalid_annotations" in invalid.hint


def test_reasons_for_no_boxes_are_named(folder):
    content = with_boxes(VALID, VALID, [5, 5, 0, 9])
    for annotation in content["annotations"][:2]:
        annotation["iscrowd"] = 1
    found = load(folder, content, invalid_boxes="drop")
    assert (
        found.why_no_boxes == "its annotations are 1 invalid boxes, 2 crowd regions (iscrowd 1), which training skips"
    )
    assert load(folder, with_boxes()).why_no_boxes == "it has no annotations"


@pytest.mark.parametrize("parts", [("images", "categories"), ("images",)])
def test_a_list_of_images_needs_no_annotations(folder, parts):
    content = {part: CONTENT[part] for part in parts}
    (folder / "info.json").write_text(json.dumps(content))
    found = load_image_list(folder, folder / "info.json")
    assert [entry["file_name"] for entry in found.images] == ["a.png", "b.png", "c.png"]
    assert found.category_ids == ([1, 18, 90] if "categories" in parts else None)
    assert found.class_names == (["person", "dog", "toothbrush"] if "categories" in parts else None)
    with pytest.raises(DatasetError, match="the list 'annotations' is missing"):
        load(folder, content | {"categories": CONTENT["categories"]})
    (folder / "info.json").write_text(json.dumps(content | {"annotations": "damaged"}))
    assert load_image_list(folder, folder / "info.json") == found


EVERYWHERE = np.ones((HEIGHT, WIDTH), dtype=np.uint8, order="F")
OUTLINES = {
    "polygon": [[1, 1, 9, 1, 9, 9]],
    "runs": {"size": [HEIGHT, WIDTH], "counts": [5, 10, WIDTH * HEIGHT - 15]},
    "packed": {"size": [HEIGHT, WIDTH], "counts": coco_mask.encode(EVERYWHERE)["counts"].decode()},
}


def with_outlines(*outlines: Any) -> dict:
    content = with_boxes(*[VALID] * len(outlines))
    for annotation, outline in zip(content["annotations"], outlines, strict=True):
        if outline is not None:
            annotation["segmentation"] = outline
    return content


def test_valid_masks_are_accepted(folder):
    found = load(folder, with_outlines(*OUTLINES.values()), invalid_masks="raise")
    assert found.arrays.segmentations_of(0) == [*OUTLINES.values()]
    assert found.dropped_masks == 0


def test_invalid_masks_are_an_error_or_dropped(folder):
    good = OUTLINES["polygon"]
    content = with_outlines(good, None, [[1, 2, 3, 4]], good, {"size": [WIDTH, HEIGHT], "counts": [3072]}, [[1] * 7])
    content["annotations"][4]["iscrowd"] = 1  # evaluation reads it
    message = (
        r"annotations without a valid mask: 4; fix them, .*data.invalid_annotations to clip or drop.*; "
        r"the first: annotation 2 in image 7 has no segmentation, "
        r"annotation 3 in image 7 has a polygon .*\[1, 2, 3, 4\].*, "
        r"annotation 5 in image 7 must have run lengths of size \[48, 64\] .*, got \[64, 48\], \.\.\.$"
    )
    with pytest.raises(DatasetError, match=message):
        load(folder, content, invalid_masks="raise")
    found = load(folder, content, invalid_masks="drop")
    assert found.arrays.segmentations_of(0) == [good, good]
    assert [annotation["file_id"] for annotation in found.raw["annotations"]] == [1, 4]
    assert found.dropped_masks == 4
    found = load(folder, content)
    assert len(boxes_of(found, 7)) == 5, "masks that are not needed are not checked"
    assert found.arrays.segmentations is None
    assert found.dropped_masks == 0


def test_an_unknown_policy_for_masks_is_an_error(folder):
    with pytest.raises(ValueError, match="`invalid_masks` must be one of raise, drop, got 'clip'"):
        load(folder, CONTENT, invalid_masks="clip")


@given(st.data())
def test_odd_masks_load_or_raise_a_dataset_error(folder, data):
    content = place = with_outlines(*copy.deepcopy([*OUTLINES.values()]))
    annotation = data.draw(st.integers(0, 2))
    place, key = place["annotations"][annotation], "segmentation"
    while isinstance(place[key], dict | list) and data.draw(st.integers(0, 3)):
        place = place[key]
        key = data.draw(st.sampled_from([*place] if isinstance(place, dict) else range(len(place))))
    place[key] = data.draw(st.sampled_from(ODD_VALUES))
    found = load(folder, content, invalid_masks="drop")
    assert len(boxes_of(found, 7)) == 3 - found.dropped_masks
    with pytest.raises(DatasetError, match=": 1; fix") if found.dropped_masks else nullcontext():
        load(folder, content, invalid_masks="raise")
    _, target = CocoDetection(found, eval_transform(), masks=True)[0]
    assert tuple(target["masks"].shape) == (len(target["boxes"]), HEIGHT, WIDTH)
    assert target["masks"].max() <= 1


def check_sound(found: CocoAnnotations) -> None:
    """Check that the loaded data can be used in training."""
    arrays = found.arrays
    assert len(arrays) == len(set(arrays.image_ids.tolist())) == len(arrays.file_names) > 0
    assert len(found.class_names) == len(found.category_ids) > 0
    assert found.category_ids == sorted(set(found.category_ids))
    assert all(-(2**63) <= key < 2**63 for key in found.category_ids), "ids must fit into tensors"
    "".join([*found.class_names, *map(arrays.file_name, range(len(arrays)))]).encode()  # to be shown and logged
    assert (arrays.offsets[0], arrays.offsets[-1]) == (0, len(arrays.boxes))
    assert ((arrays.labels > 0) & (arrays.labels <= len(found.category_ids))).all()
    for image in range(len(arrays)):
        sides = np.tile(arrays.size(image) or (math.inf, math.inf), 2)
        assert (arrays.boxes[arrays.span(image)] >= 0).all()
        assert (arrays.boxes[arrays.span(image)] <= sides.astype(np.float32)).all()
    assert (arrays.boxes[:, 2:] > arrays.boxes[:, :2]).all()
    assert all(0 < ratio < math.inf for ratio in CocoDetection(found, eval_transform()).aspect_ratios)


def check_evaluable(found: CocoAnnotations) -> None:
    """Check that the loaded data can be used in evaluation."""
    assert [entry["id"] for entry in found.raw["images"]] == found.arrays.image_ids.tolist()
    assert found.category_ids == sorted({category["id"] for category in found.raw["categories"]})
    annotations = found.raw["annotations"]
    assert [annotation["id"] for annotation in annotations] == sorted({annotation["id"] for annotation in annotations})
    assert all(annotation["id"] > 0 for annotation in annotations)
    assert len(found.arrays.boxes) <= len(annotations) - found.crowd_regions
    for annotation in annotations:
        assert annotation["image_id"] in found.arrays.image_ids
        assert annotation["category_id"] in found.category_ids
        assert annotation["iscrowd"] in (0, 1)
        assert 0 <= annotation["area"] < math.inf
        assert len(annotation["bbox"]) == 4


def check_items(found: CocoAnnotations) -> None:
    """Check that boxes are finite, inside of the image and not empty, also in float32."""
    for image, target in CocoDetection(found, eval_transform()):
        boxes, (height, width) = target["boxes"], image.shape[1:]
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= torch.tensor([width, height])).all()


def check_usable(folder: Path, content: Any) -> None:
    """Check that loading raises no other error, and that loaded data is sound."""
    for policy, check_images in itertools.product(INVALID_BOX_POLICIES, ("always", "never")):
        complaint = "annotations.json"
        try:
            found = load(folder, content, invalid_boxes=policy, check_images=check_images)
        except DatasetError as error:
            complaint = str(error)
        else:
            check_sound(found)
            check_evaluable(found)
            if check_images == "always":
                check_items(found)
        assert "annotations.json" in complaint
        complaint.encode()
    try:
        inspection = inspect_dataset(folder, folder / "annotations.json")
    except DatasetError:
        return
    for problem in inspection.errors + inspection.warnings:
        str(problem).encode()
    if len(inspection.usable.arrays) and inspection.usable.class_names:
        check_sound(inspection.usable)


# position, number of bytes removed, and their replacement
DAMAGES = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 40), st.binary(max_size=3)), min_size=1, max_size=3)
NUMBERS = ["NaN", "-Infinity", "1e999", "1e-320", "-1", "1" * 30, "9" * 400, "9" * 5000, "-0.0", "2147483648", "1e5"]
TEXTS = ['"\\ud800"', '"\\u0000"', "null", "true", "[]", "{}", "[" * 3000, '"' + "x" * 300 + '"', "\ufeff1"]


@given(damages=DAMAGES, kept=st.one_of(st.just(1.0), st.floats(0, 1)))
def test_broken_bytes_load_or_raise_a_dataset_error(folder, damages, kept):
    content = bytearray(json.dumps(CONTENT).encode())
    for place, lost, put in damages:
        start = int(place * len(content))
        content[start : start + lost] = put
    check_usable(folder, bytes(content[: round(kept * len(content))]))


@given(st.data(), st.sampled_from(NUMBERS + TEXTS))
def test_odd_literals_load_or_raise_a_dataset_error(folder, data, literal):
    text = json.dumps(CONTENT)
    values = [match.span() for match in re.finditer(r'-?\d[\d.]*|"[^"]*"', text)]
    start, end = data.draw(st.sampled_from(values))
    check_usable(folder, (text[:start] + literal + text[end:]).encode())


@given(st.data())
def test_odd_values_load_or_raise_a_dataset_error(folder, data):
    content = place = copy.deepcopy(CONTENT)
    while True:
        key = data.draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], dict | list) or data.draw(st.integers(0, 9)) == 0:
            break
        place = place[key]
    place[key] = data.draw(st.sampled_from(ODD_VALUES))
    check_usable(folder, content)
