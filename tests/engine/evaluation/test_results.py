"""Validation of COCO results: every kind of invalid entry is an error with its number."""

import math

import pytest
from pycocotools import mask as coco_mask

from engine.evaluation.coco_eval import coco_metrics
from engine.evaluation.results import check_results

TRUTH = {
    "images": [{"id": n, "file_name": f"{n}.png", "width": 200, "height": 160} for n in (1, 2)],
    "categories": [{"id": 90, "name": "dog"}, {"id": 3, "name": "cat"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0},
    ],
}
GOOD = {"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.9}
HUGE = 10**400


def bbox(*values):
    return [GOOD, GOOD | {"bbox": [*values]}]


def without(field):
    return [{key: value for key, value in GOOD.items() if key != field}]


def outline(**changes):
    """A result with a valid mask, and changes of it."""
    (rle,) = coco_mask.frPyObjects([[10, 10, 30, 10, 30, 30]], 160, 200)
    return GOOD | {"segmentation": {"size": [160, 200], "counts": rle["counts"].decode()} | changes}


NUMBERS = r"expected bbox \[x, y, width, height\] and score as finite numbers, got bbox "


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ({"AP": 1}, "must be a list of detections, got dict"),
        ({"annotations": []}, r"got dict \(a data set\); tools/predict.py --annotations writes COCO results"),
        (3, "must be a list of detections, got int"),
        (None, "must be a list of detections, got NoneType"),
        ("[]", "must be a list of detections, got str"),
        ([GOOD, 1], "detection 1: expected a mapping .* got 1"),
        ([GOOD, GOOD, None], "detection 2: expected a mapping .* got None"),
        ([[GOOD]], "detection 0: expected a mapping"),
        ([GOOD | {"image_id": 99}], "detection 0: image_id 99 is not in the annotation file.*ids from 1 to 2"),
        ([GOOD, GOOD | {"category_id": 0}], "detection 1: category_id 0 is not in the annotation.*ids from 3 to 90"),
        (without("image_id"), "detection 0: image_id None"),
        ([GOOD | {"image_id": "1"}], "image_id '1'"),
        ([GOOD | {"image_id": [1]}], r"image_id \[1\]"),
        ([GOOD | {"image_id": 1.5}], r"image_id 1\.5"),
        ([GOOD | {"image_id": True}], "image_id True"),
        ([GOOD | {"image_id": math.nan}], "image_id nan"),
        ([GOOD | {"image_id": math.inf}], "image_id inf"),
        ([GOOD | {"category_id": HUGE}], "category_id <integer of 1329 bits>|category_id 1000"),
        (bbox(1, 2, 3), f"detection 1: {NUMBERS}" + r"\[1, 2, 3\]"),
        (bbox(1, 2, 3, 4, 5), NUMBERS),
        (without("bbox"), f"{NUMBERS}None"),
        ([GOOD | {"bbox": "1234"}], NUMBERS),
        ([GOOD | {"bbox": {"x": 1}}], NUMBERS),
        (bbox("1", 2, 3, 4), NUMBERS),
        (bbox(None, 2, 3, 4), NUMBERS),
        (bbox([1], 2, 3, 4), NUMBERS),
        (bbox(1, 2, 3, math.nan), f"{NUMBERS}.*nan"),
        (bbox(1, 2, math.inf, 4), f"{NUMBERS}.*inf"),
        (bbox(1, 2, True, 4), f"{NUMBERS}.*True"),
        (bbox(1, 2, 3, HUGE), f"detection 1: {NUMBERS}"),
        (bbox(1e308, 2, 3, 4), "detection 1: expected bbox in pixels, below 100000, got bbox"),
        (bbox(1, 2, 3, -1e6), "detection 1: expected bbox in pixels"),
        (bbox(5, 5, -3, 4), r"detection 1: expected bbox with a width and height of at least 0, got bbox \[5, 5, -3"),
        (bbox(5, 5, 3, -1e-9), "detection 1: expected bbox with a width and height of at least 0"),
        ([GOOD | {"score": math.inf}], "score inf"),
        ([GOOD | {"score": math.nan}], "score nan"),
        ([GOOD | {"score": "high"}], "score 'high'"),
        ([GOOD | {"score": True}], "score True"),
        ([GOOD | {"score": [0.9]}], r"score \[0.9\]"),
        ([GOOD | {"score": HUGE}], "detection 0: expected bbox"),
        (without("score"), "score None"),
        ([outline(), GOOD], "detection 1 has no segmentation"),
        ([outline(size=[200, 160])], r"detection 0 must have run lengths of size \[160, 200\]"),
        ([outline(size=None)], "detection 0 must have run lengths of size"),
        ([outline(size=[HUGE, 200])], "detection 0 must have run lengths of size"),
        ([outline(counts="~~~")], "detection 0 has invalid run lengths"),
        ([outline(counts="漢")], "detection 0 has invalid run lengths"),
        ([outline(counts=[1, 2, 3])], "detection 0 must have run lengths of 32000 pixels in total"),
        ([outline(counts=[-1, 32001])], "detection 0 must have run lengths from 0 to"),
        ([outline(counts=[HUGE])], "detection 0 has invalid run lengths"),
        ([outline(counts=[32000.0])], "detection 0 has invalid run lengths"),
        ([outline(counts=None)], "detection 0 has a segmentation that is neither"),
        ([GOOD | {"segmentation": [[1, 2, 3]]}], "detection 0 has a polygon that is not a list"),
        ([GOOD | {"segmentation": [[1, 2, 3, 4, 5, math.nan]]}], "detection 0 has a polygon with numbers that are not"),
        ([GOOD | {"segmentation": "outline"}], "detection 0 has a segmentation that is neither"),
        ([outline() | {"bbox": [1, 2, -3, 4]}], "detection 0: expected bbox with a width"),
        ([outline() | {"bbox": None, "score": None}], "detection 0: expected a finite score"),
    ],
)
def test_an_invalid_entry_is_an_error_with_its_number(results, said):
    with pytest.raises(ValueError, match=said):
        check_results(TRUTH, results)
    with pytest.raises(ValueError, match=f"^results file a.json: .*(?:{said})"):
        check_results(TRUTH, results, "results file a.json")
    with pytest.raises(ValueError, match=said):
        coco_metrics(TRUTH, results)


def test_whole_floats_are_ids():
    results = [GOOD | {"image_id": 1.0, "category_id": 3.0}, GOOD]
    assert check_results(TRUTH, results) == [GOOD, GOOD]
    assert type(check_results(TRUTH, results)[0]["image_id"]) is int
    assert coco_metrics(TRUTH, results) == coco_metrics(TRUTH, [GOOD, GOOD])


def test_a_large_value_is_short_in_the_message():
    with pytest.raises(ValueError, match="detection 0: expected") as caught:
        check_results(TRUTH, [GOOD | {"bbox": ["x" * 10**6] * 10**5}])
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("values", [[0, 0, 0, 0], [5, 5, 0, 3], [-10, -10, 30, 30], [190, 150, 50, 50]])
def test_boxes_without_size_and_across_the_border_are_valid(values):
    results = [GOOD | {"bbox": values}]
    assert check_results(TRUTH, results) == results
