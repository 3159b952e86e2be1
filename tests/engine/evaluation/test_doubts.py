"""Signs that results do not mean what evaluation reads."""

import re

import numpy as np
import pytest

from engine.evaluation.doubts import result_doubts

SIZE = (640, 480)


def case(seed=0, images=4, objects=3, noise=0.0):
    """Ground truth with boxes of all places and forms, and detections near it."""
    rng = np.random.default_rng(seed)
    annotations = []
    for image in range(1, images + 1):
        for _ in range(objects):
            x, y = rng.uniform((0, 0), (400, 300))
            w, h = rng.uniform(20, 180, 2)
            bbox = [float(v) for v in (x, y, w, h)]
            category = int(rng.choice([3, 90]))
            annotations.append({"image_id": image, "category_id": category, "bbox": bbox, "iscrowd": 0})
    truth = {
        "images": [
            {"id": n, "file_name": f"{n}.png", "width": SIZE[0], "height": SIZE[1]} for n in range(1, images + 1)
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 90, "name": "dog"}],
        "annotations": annotations,
    }
    results = [
        {
            "image_id": entry["image_id"],
            "category_id": entry["category_id"],
            "bbox": [v + float(rng.normal(0, noise)) for v in entry["bbox"]],
            "score": float(rng.random()),
        }
        for entry in annotations
    ]
    return truth, results


def doubts(truth, results):
    return result_doubts(truth, results, 100)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("noise", [0, 3, 15])
def test_results_in_coco_form_cause_none(seed, noise):
    truth, results = case(seed, noise=noise)
    assert doubts(truth, results) == []
    assert doubts(truth, results[:1]) == []
    assert doubts(truth, []) == []
    assert doubts(truth | {"annotations": []}, results) == []


def test_wrong_boxes_cause_none():
    truth, _ = case(0)
    _, results = case(1)
    assert doubts(truth, results) == []


LAYOUTS = {
    "(x1, y1, x2, y2)": lambda x, y, w, h: [x, y, x + w, y + h],
    "(center x, center y, width, height)": lambda x, y, w, h: [x + w / 2, y + h / 2, w, h],
    "(y, x, height, width)": lambda x, y, w, h: [y, x, h, w],
    "(y1, x1, y2, x2)": lambda x, y, w, h: [y, x, y + h, x + w],
    "(x, y, width, height)": lambda *box: [*box],
}
UNITS = {"pixels": None, "fractions of the image size": 1, "percent of the image size": 100}


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("images", [1, 4])
def test_another_box_format_is_named(layout, unit, images):
    truth, results = case(2, images=images, noise=2)
    for entry in results:
        x, y, w, h = entry["bbox"]
        if unit != "pixels":
            scale = UNITS[unit]
            x, y, w, h = x / SIZE[0] * scale, y / SIZE[1] * scale, w / SIZE[0] * scale, h / SIZE[1] * scale
        entry["bbox"] = LAYOUTS[layout](x, y, w, h)
    found = doubts(truth, results)
    if (layout, unit) == ("(x, y, width, height)", "pixels"):
        assert found == []
        return
    (doubt,) = [text for text in found if "the boxes seem to be" in text]
    if not layout.startswith("(y"):  # rows first in fractions need the width for x
        assert (
            f"the boxes seem to be {layout} in {unit}, but COCO results have (x, y, width, height) in pixels" in doubt
        )


def test_fractions_that_match_nothing_are_named():
    truth, results = case(3)
    for entry in results:
        entry["bbox"] = [0.9, 0.9, 0.05, 0.05]
    assert any("all boxes end at or below 1" in text for text in doubts(truth, results))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"bbox": [5, 5, 0, 4]},
            "2 of 12 detections have a bbox of width or height 0, .*; the first: detection 1",
        ),
        (
            {"bbox": [700, 5, 10, 4]},
            "2 of 12 detections are outside of their image; .*in image 1 of 640x480",
        ),
        ({"bbox": [5, -50, 10, 4]}, "2 of 12 detections are outside of their image"),
        ({"score": 1.5}, "2 of 12 detections have a score outside of 0 to 1; .*; the first: detection 1: score 1.5"),
        ({"score": -0.1}, "2 of 12 detections have a score outside of 0 to 1"),
    ],
)
def test_doubtful_entries_are_counted_and_the_first_is_named(changes, said):
    truth, results = case(4)
    for index in (1, 7):
        results[index] |= changes
    assert any(re.search(said, text) for text in doubts(truth, results))


def test_copies_are_counted():
    truth, results = case(5)
    (doubt,) = doubts(truth, [*results, *results[:3]])
    assert doubt == (
        "3 of 15 detections are exact copies of earlier detections; evaluation counts each copy as a false positive; "
        "the first: detection 12"
    )
    assert doubts(truth, [*results, results[0] | {"score": 0.123}]) == []


def test_detections_that_are_not_counted():
    truth, results = case(6)
    more = [results[0] | {"score": index / 200} for index in range(101)]
    found = result_doubts(truth, more, 100)
    assert any(text.startswith("1 image with more than 100 detections of a class (up to 101)") for text in found)
    assert not any("more than" in text for text in result_doubts(truth, more, 101))


def test_labels_instead_of_category_ids():
    truth, results = case(7)
    for entry in results:
        entry["category_id"] = 93 - entry["category_id"]
    (doubt,) = doubts(truth, results)
    assert doubt.startswith("12 of 12 boxes that match an object have another category_id than the object")


def test_masks_without_boxes_cause_none():
    truth, results = case(8)
    for entry in results:
        del entry["bbox"]
    assert doubts(truth, results) == []
