"""All problems of a data set are reported with their number, and the check continues after them."""

import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from data import DatasetError, ReadOptions, compare_splits, inspect_dataset
from data.inspection import find_copies


def write(folder, images=(), annotations=(), categories=("cat", "dog")):
    """Write a data set of 64x48 images; `images` and `annotations` replace or add entries."""
    names = [f"{number}.png" for number in (1, 2, 3)]
    for number, name in enumerate(names):
        Image.new("RGB", (64, 48), (40 * number, 0, 0)).save(folder / name)
    content = {
        "images": [{"id": n, "file_name": name, "width": 64, "height": 48} for n, name in enumerate(names, 1)],
        "categories": [{"id": 10 * n, "name": name} for n, name in enumerate(categories, 1)],
        "annotations": [
            {"id": 5, "image_id": 1, "category_id": 10, "bbox": [1, 2, 20, 30]},
            {"id": 6, "image_id": 1, "category_id": 20, "bbox": [0, 0, 64, 48], "area": 9216},
            {"id": 7, "image_id": 2, "category_id": 20, "bbox": [3, 4, 40, 40], "iscrowd": 1},
            {"id": 8, "image_id": 3, "category_id": 20, "bbox": [3, 4, 33, 40]},
        ],
    }
    content["images"] += list(images)
    content["annotations"] += list(annotations)
    (folder / "a.json").write_text(json.dumps(content))
    return folder, folder / "a.json"


def by_message(problems):
    return {problem.what: problem.found for problem in problems}


def test_a_valid_data_set_is_counted(tmp_path):
    found = inspect_dataset(*write(tmp_path))
    assert found.errors == []
    assert found.classes == {"cat": {"images": 1, "boxes": 1}, "dog": {"images": 2, "boxes": 2}}
    # the declared area counts, as in COCO's evaluation, or the area of the box; 32^2 and 96^2 are the lower bounds
    assert found.box_sizes == {"small": 1, "medium": 1, "large": 1}
    assert found.image_sizes == {(64, 48): 3}
    assert found.boxes_per_image == {2: 1, 0: 1, 1: 1}
    assert found.crowd == 1
    assert by_message(found.warnings) == {
        "images without training boxes": ["2.png"],
        "classes with fewer than 10 boxes": ["cat (1)", "dog (2)"],
        "annotations without a valid area, which get the area of their box": [
            f"annotation {key} in image {image} has area None" for key, image in ((5, 1), (7, 2), (8, 3))
        ],
    }
    assert found.usable.class_names == ["cat", "dog"]


def test_all_errors_are_reported_in_one_call(tmp_path):
    images = [
        {"id": 4, "file_name": "gone.png"},
        {"id": 5, "file_name": "../1.png"},
        {"id": 6, "file_name": "text.png"},
        {"id": 1, "file_name": "1.png"},
        {"id": "7", "file_name": "1.png"},
    ]
    annotations = [
        {"id": 9, "image_id": 99, "category_id": 10, "bbox": [1, 2, 3, 4]},
        {"id": 11, "image_id": 1, "category_id": 30, "bbox": [1, 2, 3, 4]},
        {"id": 12, "image_id": 1, "category_id": 10, "bbox": [60, 2, 30, 4]},
        {"id": 13, "image_id": 1, "category_id": 10, "bbox": [1, 2, 0, 4]},
        {"id": 14, "image_id": 5, "category_id": 10, "bbox": [1, 2, 3, 4]},
    ]
    (tmp_path / "text.png").write_text("not an image")
    found = inspect_dataset(*write(tmp_path, images, annotations))
    errors = by_message(found.errors)
    assert errors.pop("invalid entries of images") == ["images[7] must have 'id' of type int, got '7'"]
    assert errors.pop("duplicate ids of images") == ["1"]
    assert errors.pop("file names outside of the image folder") == ["../1.png"]
    # the removed image also removes its annotation
    assert errors.pop("annotations whose image_id is not in images") == ["9 (image_id 99)", "14 (image_id 5)"]
    assert errors.pop("annotations whose category_id is not in categories") == ["11 (category_id 30)"]
    assert errors.pop(f"images missing in {tmp_path}") == ["gone.png"]
    (broken,) = errors.pop("invalid images")
    assert "text.png cannot be read" in broken
    outside, empty = errors.pop("invalid boxes (x, y, width, height)")
    assert outside.startswith("annotation 12 in image 1: [60, 2, 30, 4] is not inside of its image of 64x48")
    assert "must have a width and height above 0" in empty
    assert errors == {}
    assert found.classes["dog"] == {"images": 2, "boxes": 2}


def test_warnings(tmp_path):
    annotations = [
        {"id": 9, "image_id": 3, "category_id": 20, "bbox": [3, 4, 33, 40]},
        {"id": 10, "image_id": 3, "category_id": 20, "bbox": [3, 4, 1.5, 40]},
        {"id": 11, "image_id": 3, "category_id": 20, "bbox": [3, 4, 43, 2.1]},
    ]
    images = [{"id": 8, "file_name": "3.png"}]
    warnings = by_message(
        inspect_dataset(*write(tmp_path, images, annotations, categories=("cat", "dog", "cow", "dog"))).warnings
    )
    assert len(warnings.pop("annotations without a valid area, which get the area of their box")) == 6
    assert warnings.pop("images without width and height, measured in the image files") == ["3.png"]
    assert warnings.pop("duplicate file names") == ["3.png"]
    assert warnings.pop("duplicate category names, completed with the id") == ["dog"]
    assert warnings.pop("classes without boxes") == ["cow", "dog (40)"]
    assert warnings.pop("classes with fewer than 10 boxes") == ["cat (1)", "dog (20) (5)"]
    assert warnings.pop("images without training boxes") == ["2.png", "3.png"]
    assert warnings.pop("duplicate boxes, of the same class at the same location") == [
        "dog (20) [3, 4, 33, 40] in image 3"
    ]
    assert warnings.pop("boxes with a side below 2 pixels") == ["annotation 10 in image 3"]
    assert warnings.pop("boxes more than 20 times as long as wide") == ["annotation 11 in image 3"]
    assert warnings == {}


@pytest.mark.parametrize("content", ["[]", "{", '{"images": [], "annotations": [], "categories": []}'])
def test_missing_folder_or_file(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DatasetError, match=r"a\.json"):
        inspect_dataset(tmp_path, tmp_path / "a.json")


def test_copies_have_the_same_bytes(tmp_path):
    for name, text in (("a", "one"), ("b", "two"), ("c", "one"), ("d", "three"), ("e", "one"), ("f", "two")):
        (tmp_path / name).write_text(text)
    files = [tmp_path / name for name in "abcdef"] + [tmp_path / "a", tmp_path / "missing"]
    found = find_copies(files)
    assert [[file.name for file in group] for group in found] == [["a", "c", "e"], ["b", "f"]]


def test_splits_are_compared(tmp_path):
    folders = [tmp_path / name for name in ("train", "val")]
    for folder, categories in zip(folders, (("cat", "dog"), ("cat", "cow")), strict=True):
        folder.mkdir()
        write(folder, categories=categories)
    train, val = folders
    Image.new("RGB", (64, 48), (1, 2, 3)).save(val / "1.png")  # the others remain as in train
    Image.open(train / "1.png").save(train / "2.png")
    splits = [inspect_dataset(folder, folder / "a.json").usable for folder in folders]
    errors, warnings = compare_splits(splits)
    assert by_message(errors) == {"categories that are not in all splits": ["20 'cow'", "20 'dog'"]}
    assert by_message(warnings) == {
        "images that are in both splits, which makes validation too optimistic": [f"{train}/3.png = {val}/3.png"],
        "duplicate images": [f"{train}/1.png = {train}/2.png"],
    }
    assert compare_splits(splits[1:]) == ([], [])
    _, (leak, *_) = compare_splits([splits[1], splits[1]])
    assert leak.found == [f"{val}/{name}.png" for name in (1, 2, 3)]


OUTLINE = [[3, 4, 36, 4, 36, 44, 3, 44]]
UNREADABLE = "annotations without a valid mask"
ELSEWHERE = "masks whose bounding box has an IoU below 0.5 with the annotated box"


def with_masks(tmp_path):
    """Write a valid mask, a crowd region, an invalid mask, a mask outside of its box, and two boxes without masks."""
    entries = {
        "good": {"id": 9, "bbox": [3, 4, 33, 40], "segmentation": OUTLINE},
        "crowd": {
            "id": 10,
            "bbox": [0, 0, 64, 48],
            "iscrowd": 1,
            "segmentation": {"size": [48, 64], "counts": [0, 3072]},
        },
        "flat": {"id": 11, "bbox": [3, 4, 33, 40], "segmentation": OUTLINE[0]},
        "share": {"id": 12, "bbox": [3, 4, 33, 40], "segmentation": [[0.05, 0.1, 0.5, 0.1, 0.5, 0.9, 0.05, 0.9]]},
    }
    annotations = [{"image_id": 3, "category_id": 20} | entry for entry in entries.values()]
    return write(tmp_path, annotations=annotations)


def test_invalid_masks_are_errors_if_masks_are_needed(tmp_path):
    found = inspect_dataset(*with_masks(tmp_path), masks=True)
    errors = by_message(found.errors)
    missing = [
        f"annotation {number} in image {image} has no segmentation"
        for number, image in zip("5678", "1123", strict=True)
    ]
    (*listed, flat) = errors.pop(UNREADABLE)
    assert (listed, errors) == (missing, {})
    assert flat.startswith("annotation 11 in image 3 has a polygon that is not a list")
    assert by_message(found.warnings)[ELSEWHERE] == ["annotation 12 in image 3"]
    assert UNREADABLE not in by_message(found.warnings)
    assert (found.masks, found.has_masks, found.crowd) == (2, True, 1)
    assert found.usable.arrays.counts.tolist() == [0, 0, 2]
    assert len(found.usable.arrays.segmentations) == 2


def test_invalid_masks_are_warnings_if_masks_are_not_needed(tmp_path):
    found = inspect_dataset(*with_masks(tmp_path))
    assert found.errors == []
    assert len(by_message(found.warnings)[UNREADABLE]) == 5
    assert by_message(found.warnings)[ELSEWHERE] == ["annotation 12 in image 3"]
    assert (found.masks, found.has_masks, found.crowd) == (2, False, 2)
    assert len(found.usable.arrays.boxes) == 6
    without = inspect_dataset(*write(tmp_path))
    assert UNREADABLE not in by_message(without.warnings), "a file without masks has no invalid masks"
    assert (without.masks, without.has_masks) == (0, False)


def test_every_image_is_decoded(tmp_path):
    """Header and end of the file are right; its pixels are not complete."""
    folder, file = write(tmp_path)
    content = (folder / "2.png").read_bytes()
    place = content.index(b"IDAT") - 4
    pixels = zlib.compress(bytes(100))
    chunk = struct.pack(">I", len(pixels)) + b"IDAT" + pixels + struct.pack(">I", zlib.crc32(b"IDAT" + pixels))
    (folder / "2.png").write_bytes(content[:place] + chunk + content[-12:])
    (error,) = by_message(inspect_dataset(folder, file).errors)["invalid images"]
    assert "2.png cannot be read; it is truncated" in error


def test_narrow_images_are_errors(tmp_path):
    folder, file = write(tmp_path, [{"id": 4, "file_name": "4.png"}])
    Image.new("L", (5000, 1)).save(folder / "4.png")
    assert inspect_dataset(folder, file).errors == []
    found = inspect_dataset(folder, file, read_options=ReadOptions(max_aspect_ratio=1333))
    (error,) = by_message(found.errors)["invalid images"]
    assert "4.png must have a longer side of at most 1333 times the shorter side" in error
    assert found.usable.read_options.max_aspect_ratio == 1333


def test_doubtful_pixels_are_warnings(tmp_path):
    names = ["deep.png", "alpha.png", "pages.tif"]
    folder, file = write(tmp_path, [{"id": 4 + number, "file_name": name} for number, name in enumerate(names)])
    Image.fromarray(np.array([[5, 4095]], np.uint16)).save(folder / "deep.png")
    Image.new("RGBA", (4, 3), (1, 2, 3, 4)).save(folder / "alpha.png")
    Image.new("L", (4, 3)).save(folder / "pages.tif", save_all=True, append_images=[Image.new("L", (4, 3), 9)])
    warnings = by_message(inspect_dataset(folder, file).warnings)
    dark = "16-bit images that are dark, with values up to 4095: set data.pixel_range to the values of black and white"
    assert warnings[f"{dark}, such as [0, 4095] for 12 bits"] == ["deep.png"]
    assert warnings["images with transparent pixels, whose colours are used as if they were visible"] == ["alpha.png"]
    assert warnings["images with several frames or pages, of which only the first is used"] == ["pages.tif"]
    ranges = {(0, 4095): [], (10, 4000): ["deep.png: 5 to 4095"]}
    for pixel_range, expected in ranges.items():
        warnings = by_message(inspect_dataset(folder, file, read_options=ReadOptions(pixel_range=pixel_range)).warnings)
        assert not any("dark" in what for what in warnings)
        low, high = pixel_range
        what = f"images with pixels outside of data.pixel_range [{low}, {high}], which are clipped"
        assert warnings.get(what, []) == expected


def test_more_objects_of_a_class_than_evaluation_counts(tmp_path):
    annotations = [{"image_id": 3, "category_id": 10, "bbox": [n % 40, n // 40, 9, 9]} for n in range(120)]
    folder, file = write(tmp_path, annotations=annotations)
    what = "more than 100 objects of a class in an image, where AP cannot reach 100"
    assert by_message(inspect_dataset(folder, file).warnings)[what] == ["3.png (120 cat)"]
    assert what not in by_message(inspect_dataset(folder, file, max_detections=120).warnings)


def test_crowd_regions_alone_are_named(tmp_path):
    folder, file = write(tmp_path)
    content = json.loads(file.read_text())
    content["annotations"] = [annotation | {"iscrowd": 1} for annotation in content["annotations"]]
    file.write_text(json.dumps(content))
    warnings = by_message(inspect_dataset(folder, file).warnings)
    assert warnings["all annotations are crowd regions (iscrowd 1), which training skips"] == [
        f"annotation {a['id']} in image {a['image_id']}" for a in content["annotations"]
    ]
    assert warnings["classes without boxes"] == ["cat (1 crowd regions)", "dog (3 crowd regions)"]


@pytest.mark.parametrize("policy", ["raise", "clip", "drop"])
def test_invalid_boxes_are_errors_or_warnings_by_the_policy(tmp_path, policy):
    boxes = [[60, 2, 30, 4], [1, 2, 0, 4], ["1", 2, 3, 4]]
    folder, file = write(tmp_path, annotations=[{"image_id": 1, "category_id": 10, "bbox": box} for box in boxes])
    found = inspect_dataset(folder, file, invalid_annotations=policy)
    kinds = ("errors", "warnings") if policy == "raise" else ("warnings", "errors")
    listed, others = (by_message(getattr(found, kind)) for kind in kinds)
    assert len(listed["invalid boxes (x, y, width, height)"]) == 3
    assert "invalid boxes (x, y, width, height)" not in others
    assert len(found.usable.arrays.boxes) == (3 if policy == "drop" else 4)
