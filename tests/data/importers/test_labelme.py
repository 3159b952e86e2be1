"""LabelMe: shapes of all types, groups, and every damaged shape."""

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def shape(label="cat", points=((10, 10), (50, 10), (50, 40)), kind="polygon", **more) -> dict:
    return {"label": label, "points": [*map(list, points)], "group_id": None, "shape_type": kind, "flags": {}} | more


def labelme(*shapes, name="a.jpg", size=(200, 100)) -> str:
    sides = {"imageWidth": size[0], "imageHeight": size[1]}
    return json.dumps({"version": "5.4.1", "shapes": shapes, "imagePath": name, "imageData": None} | sides)


def test_shapes(make, run_import):
    shapes = [
        shape(),
        shape("dog", ((60, 50), (20, 30)), "rectangle"),
        shape("dog", ((100, 50), (100, 70)), "circle"),
        shape("dog", ((190, 50), (190, 90)), "circle"),  # reaches out of the image
        shape(kind=None),  # as in files of version 3
        shape(points=((1, 1), (2, 2)), kind="line"),
        shape(points=((1, 1),), kind="point"),
        shape("__ignore__"),
    ]
    found = run_import(make({"a.json": labelme(*shapes), "a.jpg": (200, 100)}))
    assert not found.found.errors
    cat, box, circle, cut, old = found["train"]["annotations"]
    assert (cat["segmentation"], cat["bbox"], cat["area"]) == ([[10, 10, 50, 10, 50, 40]], [10, 10, 40, 30], 600)
    assert (box["bbox"], "segmentation" in box) == ([20, 30, 40, 20], False)
    assert circle["bbox"] == [80, 30, 40, 40]
    assert circle["area"] == pytest.approx(math.pi * 20**2, rel=0.002)
    assert cut["bbox"] == [150, 10, 50, 80]
    # the disc without the segment beyond x = 200, 10 pixels from the center
    segment = 40**2 * math.acos(10 / 40) - 10 * math.sqrt(40**2 - 10**2)
    assert cut["area"] == pytest.approx(math.pi * 40**2 - segment, rel=0.002)
    assert old["bbox"] == cat["bbox"]
    assert {kind: len(places) for kind, places in found.found.left_out.items()} == {
        "shapes of the type 'line'": 1,
        "shapes of the type 'point'": 1,
        "shapes with the label __ignore__": 1,
    }


def test_groups_are_one_object(make, run_import):
    """Only polygons of the same label and group."""
    other = ((100, 20), (120, 20), (120, 90))
    shapes = [shape(group_id=1), shape(points=other, group_id=1), shape("dog", other, group_id=1), shape(group_id=2)]
    found = run_import(make({"a.json": labelme(*shapes), "a.jpg": (200, 100)}))
    assert found.objects() == {"a.jpg": [("cat", 10, 10, 110, 80), ("dog", 100, 20, 20, 70), ("cat", 10, 10, 40, 30)]}
    assert found["train"]["annotations"][0]["area"] == 600 + 700
    assert [len(annotation["segmentation"]) for annotation in found["train"]["annotations"]] == [2, 1, 1]


def test_names_of_another_machine(make, run_import):
    files = {
        "train/labels/a.json": labelme(shape(), name="..\\images\\A.jpg"),
        "train/images/a.jpg": (200, 100),
        "val/labels/a.json": labelme(name="..\\images\\a.jpg", size=(60, 50)),
        "val/images/a.jpg": (60, 50),
        "val/labels/b.json": labelme(name="old.jpg", size=(None, None)),
        "val/images/b.png": (5, 5),
    }
    found = run_import(make(files))
    assert not found.found.errors
    assert found.objects("train") == {"train/images/a.jpg": [("cat", 10, 10, 40, 30)]}
    assert found.objects("val") == {"val/images/a.jpg": [], "val/images/b.png": []}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (labelme(shape(), shape("")), "a.json, shapes[1]: must have a label that is a text and not empty, got ''"),
        (labelme(shape(points=((1, 1), (5, 5)))), "a polygon must have points [[x, y], ...], at least 3, got [[1, 1]"),
        (labelme(shape(points=((1, 1), (5, 5), (5, "x")))), "got [[1, 1], [5, 5], [5, 'x']]"),
        (labelme(shape(points=((1, 1), (1, 1)), kind="rectangle")), "must have a width and height above 0"),
        (labelme(shape(points=((1, 1), (1e9, 5), (7, 7)))), "numbers that are not pixels"),
        (labelme(shape(points=((1, 1), (500, 5), (7, 7)))), "must be inside of its image of 200x100"),
        (labelme(5), "got None"),
        (labelme(size=(100, 200)), "a.json: 100x200, and "),
        ('{"shapes": [', "is not valid JSON"),
    ],
)
def test_errors(make, run_import, text, said):
    files = {"a.jpg": (200, 100), "a.json": text, "b.jpg": (200, 100), "b.json": labelme(name="b.jpg")}
    found = run_import(make(files))
    assert said in str(found.found.errors)
    assert sum(map(len, found.found.errors.values())) == 1


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 300) | st.floats() | st.sampled_from(["cat", "", "circle", "line"]),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(st.sampled_from(["label", "points", "shape_type", "group_id"]), VALUES, max_size=3)))
def test_no_shape_is_lost(make, run_import, changes):
    shapes = [shape() | change for change in changes]
    found = run_import(make({"a.json": labelme(*shapes), "a.jpg": (200, 100)})) if changes else None
    if found:
        counted = sum(map(len, (found.found.errors | found.found.left_out).values()))
        joined = sum(len(places) for kind, places in found.found.notes.items() if "joined" in kind)
        assert len(found["train"]["annotations"]) + counted + joined == len(shapes)
