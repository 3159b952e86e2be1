"""Label Studio: regions in percent, several annotations, names of images, and every damaged region."""

import cmath
import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

BOX = {"x": 10, "y": 20, "width": 25, "height": 50, "rotation": 0, "rectanglelabels": ["cat"]}


def region(value=BOX, kind="rectanglelabels", key="r1", **more) -> dict:
    sizes = {"original_width": 200, "original_height": 100, "image_rotation": 0}
    return {"id": key, "type": kind, "value": value, "from_name": "label", "to_name": "image"} | sizes | more


def task(*regions, image="/data/upload/1/0123abcd-a.jpg", annotations=None, **more) -> dict:
    found = [{"id": 1, "was_cancelled": False, "result": [*regions]}] if annotations is None else annotations
    return {"id": 7, "data": {"image": image, "note": "some text"}, "annotations": found, "predictions": []} | more


def test_regions(make, run_import):
    polygon = {"points": [[5, 10], [25, 10], [25, 40]], "closed": True, "polygonlabels": ["dog", "cat"]}
    regions = [
        region(),
        region(polygon, "polygonlabels", "r2"),
        region({"x": 50, "y": 50, "radiusX": 10, "radiusY": 20, "ellipselabels": ["dog"]}, "ellipselabels", "r3"),
        region({key: BOX[key] for key in ("x", "y", "width", "height")}, "rectangle", "r4"),
        region(BOX | {"rectanglelabels": None, "labels": ["bird"]}, "labels", "r4"),
        region({"format": "rle", "rle": [1, 2], "brushlabels": ["cat"]}, "brushlabels", "r5"),
        region(BOX | {"choices": ["blurred"]}, "choices", "r1"),
        region({"x": 1, "y": 1, "width": 0.3, "keypointlabels": ["nose"]}, "keypointlabels", "r6"),
        region(BOX | {"rectanglelabels": []}, key="r7"),
        {"type": "relation", "from_id": "r1", "to_id": "r2"},
    ]
    del regions[6]["value"]["rectanglelabels"]
    found = run_import(make({"export.json": json.dumps([task(*regions)]), "photos/a.jpg": (200, 100)}))
    assert not found.found.errors
    assert found.objects()["a.jpg"] == [
        ("cat", 20, 20, 50, 50),
        ("dog", 10, 10, 40, 30),
        ("dog", 80, 30, 40, 40),
        ("bird", 20, 20, 50, 50),
    ]
    assert found["train"]["annotations"][1]["segmentation"] == [[10, 10, 50, 10, 50, 40]]
    assert found["train"]["annotations"][2]["area"] == pytest.approx(math.pi * 20 * 20, rel=0.002)
    assert {kind: len(places) for kind, places in found.found.left_out.items()} == {
        "further labels of a region": 1,
        "results of the type 'brushlabels'": 1,
        "results of the type 'choices'": 1,
        "results of the type 'keypointlabels'": 1,
        "regions without a label": 1,
        "results of the type relation": 1,
    }


@pytest.mark.parametrize("degrees", [17.0, 90.0, 328.25])
def test_turned_boxes(make, run_import, degrees):
    """Clockwise around the upper left corner, in pixels, against complex numbers."""
    value = {"x": 40, "y": 40, "width": 10, "height": 30, "rotation": degrees, "rectanglelabels": ["cat"]}
    found = run_import(make({"export.json": json.dumps([task(region(value))]), "a.jpg": (200, 100)}))
    turn = cmath.exp(1j * math.radians(degrees))
    corners = [80 + 40j + (x + 1j * y) * turn for x, y in ((0, 0), (20, 0), (20, 30), (0, 30))]
    xs, ys = [corner.real for corner in corners], [corner.imag for corner in corners]
    (annotation,) = found["train"]["annotations"]
    assert annotation["bbox"] == pytest.approx([min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)], abs=0.01)
    assert annotation["area"] == pytest.approx(20 * 30, rel=0.002)


@pytest.mark.parametrize(
    ("image", "file"),
    [
        ("/data/upload/1/0123abcd-a.jpg", "photos/a.jpg"),
        ("/data/upload/1/0123abcd-a.jpg", "photos/0123abcd-a.jpg"),
        ("/data/local-files/?d=pets%2Fphotos/a%20b.jpg", "photos/a b.jpg"),
        ("https://host/some/a%20b.jpg?token=1", "a b.jpg"),
        ("s3://bucket/photos/a.jpg", "photos/a.jpg"),
        ("photos\\a.jpg", "photos/a.jpg"),
        ("100%.jpg", "100%.jpg"),
        ("//[", "up.jpg"),
    ],
)
def test_names_of_images(make, run_import, image, file):
    files = {"e.json": json.dumps([task(region(), image=image, file_upload="0123abcd-up.jpg")]), "other/z.jpg": (9, 9)}
    found = run_import(make(files | {file: (200, 100)}))
    assert not found.found.errors
    assert [entry["file_name"] for entry in found["train"]["images"]] == [file.rpartition("/")[2]]


def test_several_annotations(make, run_import):
    """The newest counts, the ground truth before it, and none that is skipped; without any, the task has no labels."""
    old = {"result": [region(key="old")], "updated_at": "2024-01-01T00:00:00Z"}
    new = {"result": [region(BOX | {"x": 30}), region()], "updated_at": "2024-02-01T00:00:00Z"}
    truth = {"result": [], "updated_at": "2023-01-01T00:00:00Z", "ground_truth": True}
    skipped = {"result": [region()], "updated_at": "2025-01-01T00:00:00Z", "was_cancelled": True}
    tasks = [
        task(annotations=[new, old, skipped], image="a.jpg"),
        task(annotations=[new, truth], image="b.jpg"),
        task(annotations=[skipped], image="c.jpg"),
        task(annotations=[], image="d.jpg", predictions=[{"result": [region()]}]),
    ]
    files = {"e.json": json.dumps(tasks)} | {f"{name}.jpg": (200, 100) for name in "abcd"}
    found = run_import(make(files))
    assert found.objects() == {"a.jpg": [("cat", 60, 20, 50, 50), ("cat", 20, 20, 50, 50)], "b.jpg": []}
    assert {kind: len(places) for kind, places in found.found.left_out.items()} == {
        "annotations that the annotator skipped": 2,
        "older annotations of a task with several": 2,
        "tasks without an annotation": 2,
        "predictions of a model": 1,
        "images without labels": 2,
    }


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (task(region(BOX | {"width": "x"})), "e.json, task 7, region 'r1': must have numbers in percent"),
        (task(region(BOX | {"width": 0})), "must have a width and height above 0"),
        (task(region(BOX | {"x": 90})), "must be inside of its image of 200x100"),
        (task(region({"points": [[1, 2], [3]], "polygonlabels": ["cat"]}, "polygonlabels")), "in percent"),
        (task(region(image_rotation=90)), "the image is turned by 90 degrees"),
        (task(region(original_width=100)), "e.json, task 7: 100x100, and "),
        (task(5), "must be a mapping with a value, got 5"),
        (task(annotations=[{"result": 5}]), "must have a list of annotations with a result each, got [{'result': 5}]"),
        (task(region(), image="lost.jpg"), "e.json, task 7: lost.jpg"),
        ({"image": "a.jpg", "label": [], "annotation_id": 1, "annotator": 1}, "export them as JSON"),
    ],
)
def test_errors(make, run_import, broken, said):
    files = {"e.json": json.dumps([broken, task(image="b.jpg")]), "a.jpg": (200, 100), "b.jpg": (200, 100)}
    found = run_import(make(files)).found
    assert said in str(found.errors)
    assert sum(map(len, found.errors.values())) == 1


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.floats(),
    st.integers(-5, 150),
    st.lists(st.sampled_from(["cat", "", 3, []]), max_size=3),
)
KEYS = st.sampled_from(["x", "width", "rotation", "rectanglelabels", "polygonlabels", "points", "radiusX"])


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(KEYS, VALUES, max_size=3), max_size=5))
def test_no_region_is_lost(make, run_import, changes):
    regions = [region(BOX | change, key=f"r{index}") for index, change in enumerate(changes)]
    found = run_import(make({"e.json": json.dumps([task(*regions)]), "a.jpg": (200, 100)}))
    lost = (found.found.errors | found.found.left_out).items()
    counted = sum(len(places) for kind, places in lost if kind != "further labels of a region")
    assert len(found["train"]["annotations"]) + counted == len(regions)
