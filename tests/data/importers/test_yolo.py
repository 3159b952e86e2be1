"""YOLO: all spellings of data.yaml, boxes and polygons, and every damaged line."""

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

IMAGES = {"images/train/a.jpg": (200, 100), "images/train/b.png": (50, 80), "images/val/a.jpg": (120, 60)}
LABELS = {
    "labels/train/a.txt": "0 0.5 0.5 0.25 0.5\n1 0.1 0.2 0.4 0.2 0.4 0.6\n",
    "labels/train/b.txt": "",
    "labels/val/a.txt": "1 0.25 0.5 0.5 1.0",
}
TRAIN = {"train/a.jpg": [("cat", 75, 25, 50, 50), ("dog", 20, 20, 60, 40)], "train/b.png": []}
VAL = {"val/a.jpg": [("dog", 0, 0, 60, 60)]}


@pytest.mark.parametrize(
    "text",
    [
        "path: .\ntrain: images/train\nval: images/val\nnames: [cat, dog]\nnc: 2",
        "train: images/train\nvalid: [images/val]\nnames: {0: cat, 1: dog}",
        "path: /home/me/datasets/pets\ntrain: images/train\nval: images/val\ntest:\nnames: ['cat', 'dog']",
        "path: ../source\ntrain: ../images/train\nval: ../images/val\nnames:\n  0: cat\n  1: dog",
        "train: lists/train.txt\nval: lists/val.txt\nnames: classes.txt",
        "train: C:\\pets\\images\\train\nval: C:\\pets\\images\\val\nnames: [cat, dog]",
    ],
    ids=["path", "list", "other machine", "roboflow", "text files", "windows"],
)
def test_spellings_of_a_data_yaml(make, run_import, text):
    lists = {
        "lists/train.txt": "./images/train/a.jpg\n\n/old/place/images/train/b.png\n",
        "lists/val.txt": "../images/val/a.jpg",
        "classes.txt": "cat\ndog\n",
    }
    found = run_import(make(IMAGES | LABELS | {"data.yaml": text} | lists))
    assert not found.found.errors
    assert (found.objects("train"), found.objects("val")) == (TRAIN, VAL)
    assert [*found] == ["train", "val"]
    polygon = found["train"]["annotations"][1]
    assert polygon["segmentation"] == [[20, 20, 80, 20, 80, 60]]
    assert polygon["area"] == 60 * 40 / 2
    assert found["train"]["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


def test_without_a_data_yaml(make, run_import):
    """Splits are folders; names are in classes.txt, or given, or the numbers."""
    source = make(IMAGES | LABELS | {"classes.txt": "cat\ndog\n", "README.txt": "hello"})
    found = run_import(source)
    assert (found.objects("train"), found.objects("val")) == (TRAIN, VAL)
    assert found.found.left_out == {"text files without labels": ["README.txt"]}
    (source / "classes.txt").unlink()
    assert run_import(source, classes=["cat", "dog"]).objects("train") == TRAIN
    numbers = run_import(source)
    assert numbers.objects("val") == {"val/a.jpg": [("1", 0, 0, 60, 60)]}
    assert any("replaced by their numbers" in kind for kind in numbers.found.notes)


def test_darknet(make, run_import):
    files = {"obj.data": "classes = 2\ntrain = data/train.txt\nvalid = data/test.txt\nnames = data/obj.names\n"}
    files |= {"obj.names": "cat\ndog\n", "train.txt": "data/obj/x.jpg\n", "test.txt": "data/obj/y.jpg"}
    files |= {"obj/x.jpg": (10, 10), "obj/y.jpg": (10, 20), "obj/x.txt": "1 0.5 0.5 0.5 0.5", "obj/y.txt": ""}
    found = run_import(make(files))
    assert not found.found.errors
    assert found.objects("train") == {"x.jpg": [("dog", 2.5, 2.5, 5, 5)]}
    assert found.objects("val") == {"y.jpg": []}


def test_images_in_another_folder(make, run_import, tmp_path):
    """An image without a label file is left out, since the labels may be those of a part of the images."""
    source = make(LABELS | {"data.yaml": "train: images/train\nval: images/val\nnames: [cat, dog]"})
    images = make({name[7:]: size for name, size in IMAGES.items()} | {"c.jpg": (5, 5)}, tmp_path / "photos")
    found = run_import(source, images=images)
    assert (found.objects("train"), found.objects("val")) == (TRAIN, VAL)
    assert found.found.left_out == {"images without a label file": [str(images / "c.jpg")]}


def test_images_without_labels_are_background(make, run_import):
    found = run_import(make({"a.jpg": (20, 20), "b.jpg": (20, 20), "b.txt": "0 0.5 0.5 0.5 0.5"}))
    assert found.objects("train") == {"a.jpg": [], "b.jpg": [("0", 5, 5, 10, 10)]}


def test_rotated_images_and_repeated_lines(make, run_import):
    """Fractions are of the image that EXIF rotates; a repeated line is one object, as in other trainers."""
    source = make({"a.txt": "0 0.5 0.5 0.5 0.5\n" * 3})
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (40, 20)).save(source / "a.jpg", exif=exif)
    found = run_import(source)
    assert found["train"]["images"][0] == {"id": 1, "file_name": "a.jpg", "width": 20, "height": 40}
    assert found.objects() == {"a.jpg": [("0", 5, 10, 10, 20)]}
    assert found.found.left_out == {"repeated lines of YOLO labels": ["a.txt, line 2", "a.txt, line 3"]}


def test_numbers_of_classes_may_have_gaps(make, run_import):
    """As in labels with COCO's own ids. Names stay texts."""
    text = "train: images/train\nval: images/val\nnames: {1: 'no', 3: 1.0}"
    labels = {name: re.sub("(?m)^0 ", "3 ", text) for name, text in LABELS.items()}
    found = run_import(make(IMAGES | labels | {"data.yaml": text}))
    assert not found.found.errors
    assert found["val"]["categories"] == [{"id": 1, "name": "no"}, {"id": 3, "name": "1.0"}]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("names: [cat, dog, cat]", "data.yaml: 'cat'"),
        ("names: [cat, dog]\nnc: 3", "nc is 3, and names has 2 classes"),
        ("names: {0: cat, dog: 1}", "got 'dog': '1'"),
        ("names: none.txt", "got 'none.txt'"),
        ("names: [cat, dog]\nkpt_shape: [17, 3]", "key points"),
        ("names: {0: cat, 0: dog}", "a key is given twice"),
        ("names: [cat", "line 3: expected"),
        ("names: [cat, [a, b]]", "got '1': ['a', 'b']"),
        ("names: [cat, dog]\nnc: many", "got 'many'"),
        ("names: [cat]", "labels/train/a.txt, line 2: 1; there are 1 names, up to number 0"),
        ("names: [cat, dog]\nval: images/none", "val: images/none"),
    ],
)
def test_errors_of_a_data_yaml(make, run_import, text, said):
    rest = "train: images/train\n" + ("" if "val:" in text else "val: images/val\n")
    found = run_import(make(IMAGES | LABELS | {"data.yaml": rest + text}))
    assert said in str(found.found.errors)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("0 0.5 0.5 0.1 0.1 0.9", "line 2: has 6 numbers, a class, a box and a confidence"),
        ("0 0.5 0.5 0.1", "got 4 numbers"),
        ("0 0.5 0.5 0.1 x", "got 'x'"),
        ("0 0.5 0.5 0.1 nan", "got 'nan'"),
        ("-1 0.5 0.5 0.1 0.1", "must begin with a class number, 0 or above, got '-1'"),
        ("1.5 0.5 0.5 0.1 0.1", "got '1.5'"),
        ("0 50 50 10 10", "must have fractions of the image, from 0 to 1, got '50'"),
        ("0 0.5 0.5 0 0.1", "line 2: must have a width and height above 0"),
        ("0 0.99 0.5 0.2 0.1", "line 2: must be inside of its image of 200x100"),
        ("0 " + " ".join(["0.5"] * 55), "key points"),
    ],
)
def test_errors_of_a_line(make, run_import, line, said):
    text = f"0 0.5 0.5 0.25 0.5\n{line}\n0 0.5 0.5 0.25 0.6"
    found = run_import(make({"a.jpg": (200, 100), "a.txt": text}))
    assert said in str(found.found.errors)
    assert len(found.objects()["a.jpg"]) == 2
    assert sum(map(len, found.found.errors.values())) == 1


def test_oriented_boxes_and_other_splits(make, run_import):
    """Nine numbers are a polygon; a label never belongs to an image of another split; an empty split is reported."""
    labels = {"train/labels/a.txt": "0 0.1 0.5 0.5 0.1 0.9 0.5 0.5 0.9", "train/labels/b.txt": "0 0.5 0.5 0.5 0.5"}
    images = {"train/images/a.jpg": (100, 100), "valid/images/b.jpg": (100, 100), "test/images/readme.md": "none"}
    text = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnames: [cat]"
    inner = {"runs/old/args.yaml": "names: [other]", "inner/broken.yaml": "[", "other.data": "a = b"}
    source = make(labels | images | {"data.yaml": text} | inner)
    found = run_import(source)
    assert found.objects("train") == {"train/images/a.jpg": [("cat", 10, 10, 80, 80)]}
    assert found.objects("val") == {"valid/images/b.jpg": []}
    assert found["train"]["annotations"][0]["area"] == 80 * 80 / 2
    assert found.found.errors == {f"label files whose image is not below {source}": ["train/labels/b.txt"]}
    assert found.found.left_out == {"splits without an image": ["test"]}
    assert [*found.found.notes] == ["lines with 9 numbers, as oriented boxes have, read as polygons of four corners"]


def test_labels_and_images_that_do_not_fit(make, run_import):
    files = {"images/a.jpg": (20, 20), "labels/a.txt": "0 0.5 0.5 0.5 0.5", "labels/lost.txt": ""}
    source = make(files | {"images/b.jpg": "no image", "images/c.jpg": (9, 9), "images/c.png": (9, 9)})
    (source / "labels/c.txt").write_text("")
    found = run_import(source).found
    assert {kind: len(places) for kind, places in found.errors.items()} == {
        "label files that fit more than one image": 1,
        f"label files whose image is not below {source}": 1,
        "images that cannot be read": 1,
    }


WORDS = st.one_of(st.floats(0, 1).map(lambda value: f"{value:.4f}"), st.sampled_from(["0", "1", "7", "-1", "nan", "x"]))
LINES = st.lists(WORDS, max_size=8).map(" ".join) | st.just("0 0.5 0.5 0.25 0.5")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(LINES, max_size=6))
def test_no_line_is_lost(make, run_import, lines):
    """Every line is an object, or an error or a repetition that is counted."""
    files = {"a.jpg": (100, 80), "a.txt": "\n".join(lines), "classes.txt": "cat\ndog"}
    found = run_import(make(files))
    counted = sum(map(len, (found.found.errors | found.found.left_out).values()))
    assert len(found["train"]["annotations"]) + counted == len([line for line in lines if line.strip()])
