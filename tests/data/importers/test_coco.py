"""COCO: files of several programs are read without a change of boxes, masks and ids."""

import json

IMAGE = {"id": 7, "file_name": "a.jpg", "width": 200, "height": 100}
BOX = {"id": 3, "image_id": 7, "category_id": 5, "bbox": [10.25, 20, 30, 40], "area": 700.5, "iscrowd": 0}
CATEGORIES = [{"id": 5, "name": "cat"}, {"id": 9, "name": "dog"}]


def coco(images=(IMAGE,), annotations=(BOX,), categories=CATEGORIES) -> str:
    return json.dumps({"images": [*images], "annotations": [*annotations], "categories": [*categories]})


def test_files_of_each_split(make, run_import):
    """In one folder or next to the images; boxes, areas, masks, crowd regions and category ids stay."""
    runs = {"size": [100, 200], "counts": [100, 50, 19850]}
    crowd = BOX | {"id": 4, "iscrowd": 1, "segmentation": runs, "area": 50}
    other = {"id": 1, "file_name": "C:\\data\\b.jpg"}
    files = {
        "annotations/instances_train2017.json": coco(annotations=[BOX, crowd]),
        "annotations/instances_val2017.json": coco([other], [BOX | {"image_id": 1, "category_id": 9}]),
        "train2017/a.jpg": (200, 100),
        "val2017/b.jpg": (60, 80),
        "val2017/c.jpg": (60, 80),
    }
    found = run_import(make(files))
    assert not found.found.errors
    assert found.objects("train") == {"train2017/a.jpg": [("cat", 10.25, 20, 30, 40)] * 2}
    assert found.objects("val") == {"val2017/b.jpg": [("dog", 10.25, 20, 30, 40)]}
    assert [a["area"] for a in found["train"]["annotations"]] == [700.5, 50]
    assert found["train"]["annotations"][1]["segmentation"] == runs
    assert found["val"]["images"][0]["width"] == 60
    assert found["val"]["categories"] == CATEGORIES
    assert [*found.found.left_out] == ["images without labels"]


def test_roboflow(make, run_import):
    """A file in each folder, and a category 0 that is the parent of all others."""
    parent = {"id": 0, "name": "pets", "supercategory": "none"}
    categories = [parent, *({**entry, "supercategory": "pets"} for entry in CATEGORIES)]
    files = {f"{split}/_annotations.coco.json": coco(categories=categories) for split in ("train", "valid", "test")}
    found = run_import(make(files | {f"{split}/a.jpg": (200, 100) for split in ("train", "valid", "test")}))
    assert not found.found.errors
    assert {split: [*found.objects(split)] for split in found} == {
        "test": ["test/a.jpg"],
        "train": ["train/a.jpg"],
        "val": ["valid/a.jpg"],
    }
    assert found["train"]["categories"] == CATEGORIES


def test_errors_are_listed_together(make, run_import):
    annotations = [BOX | {"bbox": [1, 2, 3]}, BOX | {"category_id": 1}, BOX | {"bbox": [1, 2, 3, 0]}, 5]
    annotations += [BOX | {"segmentation": [[1, 2]]}, BOX | {"image_id": 8}]
    lost = {"id": 8, "file_name": "lost.jpg"}
    found = run_import(make({"train.json": coco([IMAGE, lost], annotations), "a.jpg": (200, 100)}))
    errors = found.found.errors
    assert {kind.split(":")[0].split(" below")[0]: len(places) for kind, places in errors.items()} == {
        "labels whose image is not": 1,
        "invalid entries of annotations": 1,
        "annotations whose category_id is not in categories": 1,
        "annotations without a box of four numbers": 1,
        "boxes that are not valid (x, y, width, height in pixels)": 1,
        "objects whose outline is not valid": 1,
    }
    assert found.found.left_out == {"annotations of images that do not exist": ["train.json"]}
    assert not found["train"]["annotations"]


def test_ids_that_contradict_each_other(make, run_import):
    swapped = [{"id": 9, "name": "cat"}, {"id": 5, "name": "dog"}]
    files = {"train.json": coco(), "val.json": coco([IMAGE | {"file_name": "b.jpg"}], categories=swapped)}
    found = run_import(make(files | {"a.jpg": (200, 100), "b.jpg": (200, 100)}))
    assert found.objects("train") == {"a.jpg": [("cat", 10.25, 20, 30, 40)]}
    assert found.objects("val") == {"b.jpg": [("dog", 10.25, 20, 30, 40)]}
    assert found["train"]["categories"] == found["val"]["categories"]
    assert any("counted from 1" in kind for kind in found.found.notes)


def test_two_files_of_a_split(make, run_import):
    captions = json.dumps({"images": [], "annotations": []})
    source = make({"a.json": coco(), "b.json": coco(), "c.json": captions, "a.jpg": (200, 100)})
    found = run_import(source)
    assert found.found.errors == {
        "more than one COCO file for train; give a file instead of the folder": ["a.json, b.json"]
    }
    assert run_import(source / "b.json").objects() == {"a.jpg": [("cat", 10.25, 20, 30, 40)]}
