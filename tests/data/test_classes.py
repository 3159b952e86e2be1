"""A file with changed classes equals a file that was rewritten by hand."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from data import DatasetError, inspect_dataset, load_annotations, load_image_list
from data.classes import ClassChanges, ClassesKept, change_categories

NAMES = {2: "car", 3: "truck", 5: "person", 7: "van", 11: "dog"}


def annotation(key, image, category, **more):
    return {"id": key, "image_id": image, "category_id": category, "bbox": [1, 2, 3 + key, 4], "area": 5} | more


ANNOTATIONS = [
    annotation(1, 1, 7),
    annotation(2, 1, 5, iscrowd=1),
    annotation(3, 2, 11, bbox=[0, 0, 500, 1]),  # not inside of its image
    annotation(4, 3, 3),
    annotation(5, 3, 2, segmentation=[[1, 1, 9, 1, 9, 9]]),
    annotation(6, 3, 7, iscrowd=1),
]


@pytest.fixture
def write(tmp_path):
    """`write(name, categories, annotations)`: a COCO file of three images; its folder is that of the images."""
    for image in (1, 2, 3):
        Image.new("RGB", (40, 30)).save(tmp_path / f"{image}.png")

    def write_file(name, categories, annotations):
        images = [{"id": image, "file_name": f"{image}.png", "width": 40, "height": 30} for image in (1, 2, 3)]
        entries = [{"id": key, "name": category} for key, category in categories.items()]
        file = tmp_path / name
        file.write_text(json.dumps({"images": images, "categories": entries, "annotations": annotations}))
        return tmp_path, file

    return write_file


def without_numbers(entries):
    """Entries without the numbers that count all annotations of a file."""
    return [
        {key: value for key, value in entry.items() if "bbox" not in entry or key not in ("id", "file_id")}
        for entry in entries
    ]


CASES = [
    ({"keep": ["van", "car"]}, {2: "car", 7: "van"}, {2: 2, 7: 7}),
    ({"merge": {"vehicle": ["van", "truck"]}, "keep": ["vehicle"]}, {3: "vehicle"}, {3: 3, 7: 3}),
    (
        {"merge": {"car": ["van", "car"]}, "rename": {"truck": "lorry"}, "keep": ["lorry", "person", "car"]},
        {2: "car", 3: "lorry", 5: "person"},
        {2: 2, 7: 2, 3: 3, 5: 5},
    ),
    ({"rename": {"car": "van", "van": "car"}, "keep": ["car"]}, {7: "car"}, {7: 7}),
]


@pytest.mark.parametrize(("changes", "names", "new_ids"), CASES)
def test_the_result_equals_a_rewritten_file(write, changes, names, new_ids):
    changes = ClassChanges(**changes)
    changed = load_annotations(*write("a.json", NAMES, ANNOTATIONS), classes=changes)
    kept = [
        entry | {"category_id": new_ids[entry["category_id"]]}
        for entry in ANNOTATIONS
        if entry["category_id"] in new_ids
    ]
    wanted = load_annotations(*write("b.json", names, kept))
    assert changed.classes_kept == ClassesKept(5, len(names), 6, len(kept))
    for field in ("category_ids", "class_names", "crowd_regions", "fixed_boxes"):
        assert getattr(changed, field) == getattr(wanted, field)
    for field in ("image_ids", "offsets", "boxes", "labels"):
        assert np.array_equal(getattr(changed.arrays, field), getattr(wanted.arrays, field))
    for part in ("images", "categories", "annotations"):
        assert without_numbers(changed.raw[part]) == without_numbers(wanted.raw[part])
    assert load_image_list(*write("a.json", NAMES, []), classes=changes)[1:] == ([*names], [*names.values()])
    found = inspect_dataset(*write("a.json", NAMES, ANNOTATIONS), classes=changes)
    other = inspect_dataset(*write("b.json", names, kept))
    assert (found.errors, found.classes, found.box_sizes) == (other.errors, other.classes, other.box_sizes)
    assert str(found.usable.classes_kept) == f"5 -> {len(names)} classes, {len(kept)} of 6 annotations"


def test_invalid_boxes_of_a_class_that_remains_are_errors(write):
    with pytest.raises(DatasetError, match="invalid boxes"):
        load_annotations(*write("a.json", NAMES, ANNOTATIONS), classes=ClassChanges(["dog"]))


def test_an_empty_class_is_the_reason_for_no_boxes(write):
    split = load_annotations(*write("a.json", NAMES, ANNOTATIONS[:1]), classes=ClassChanges(["dog"]))
    assert split.why_no_boxes == "data.classes keeps none of its 1 annotations"


def test_all_mistakes_are_listed_at_once(write):
    changes = ClassChanges(
        keep=["vehicle", "Dog", "van", "dog", "dog"],
        merge={"vehicle": ["car", "vam", "car"], "person": ["truck"], "all": []},
        rename={"car": "auto", "cat": "pet", "van": "all"},
    )
    with pytest.raises(DatasetError) as caught:
        load_annotations(*write("a.json", NAMES, ANNOTATIONS), classes=changes)
    head, *lines = str(caught.value).splitlines()
    assert "a.json" in head
    assert lines == [
        "  - `merge.vehicle` names 'car' more than once",
        "  - `merge.all` must name at least one class, got an empty list",
        "  - `keep` names 'dog' more than once",
        "  - class 'car' must have one new name, got it in `merge.vehicle` and `rename`",
        "  - several entries give the new name 'all'; join the classes in one list of `merge`",
        "  - `merge.vehicle`: no class has the name 'vam'; did you mean 'van'",
        "  - `rename`: no class has the name 'cat'; did you mean 'car'",
        "  - new name 'person' must not be that of another class of the file; to join them, add it to `merge`",
        "  - `keep`: no class has the name 'Dog'; did you mean 'dog'",
        "  - `keep`: no class has the name 'van'; its new name is 'all'",
    ]


def test_many_unknown_names_stay_short():
    names = {key: f"class {key}" for key in range(5000)}
    with pytest.raises(DatasetError) as caught:
        change_categories(names, ClassChanges(keep=["?"], rename={"x" * 999: "y"}), "a.json")
    assert len(str(caught.value)) < 1500
    assert asdict(ClassChanges()) == {"keep": None, "merge": {}, "rename": {}}
