"""Kinds of errors: one of each planted, and random detections against loops over all pairs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.evaluation.tide import ERROR_KINDS, find_errors
from tests.engine.evaluation.scenes import annotation, random_scene, scene

NAMES = {code: name for name, code in ERROR_KINDS.items()} | {0: "correct"}


def result(image: int, category: int, bbox: list[float], score: float) -> dict:
    return {"image_id": image, "category_id": category, "bbox": bbox, "score": score}


def kinds_of(errors) -> dict[int, str]:
    found = errors.detections
    return {int(row): NAMES[int(kind)] for row, kind in zip(found.result, found.kind, strict=True)}


TRUTH = scene(
    [
        annotation(1, 10, 7, [10, 10, 20, 20]),
        annotation(2, 10, 3, [60, 10, 20, 20]),
        annotation(3, 11, 3, [10, 10, 30, 30]),
        annotation(4, 11, 7, [60, 40, 10, 10]),
        annotation(5, 12, 3, [0, 0, 60, 60], iscrowd=1),
    ],
    4,
    [7, 3],
)
PLANTED = {
    "correct": result(10, 7, [10, 10, 20, 20], 0.5),
    "duplicate": result(10, 7, [11, 10, 20, 20], 0.4),
    "class": result(10, 7, [60, 10, 20, 19], 0.9),
    "localization": result(11, 3, [25, 10, 30, 30], 0.8),  # IoU 1/3
    "both": result(11, 7, [25, 10, 30, 30], 0.7),
    "background": result(13, 3, [1, 2, 3, 4], 0.6),
}


def test_one_of_each_kind():
    errors = find_errors(TRUTH, [*PLANTED.values()])
    assert kinds_of(errors) == dict(enumerate(PLANTED))
    found, objects = errors.detections, errors.objects
    rows = {int(row): index for index, row in enumerate(found.result)}
    place = {kind: rows[index] for index, kind in enumerate(PLANTED)}
    assert objects.annotation.tolist() == [0, 1, 2, 3]
    truth = {kind: int(found.truth[row]) for kind, row in place.items()}
    assert truth == {"correct": 0, "duplicate": 0, "class": 1, "localization": 2, "both": 2, "background": -1}
    assert found.iou[place["localization"]] == pytest.approx(1 / 3)
    assert found.iou[place["background"]] == 0
    assert objects.matched.tolist() == [place["correct"], -1, -1, -1]
    assert objects.fixed_by.tolist() == [-1, place["class"], place["localization"], -1]
    assert objects.missed.tolist() == [False, False, False, True]  # the others have errors
    assert objects.best_iou[[1, 3]] == pytest.approx([0.95, 0])
    assert found.image.tolist() == sorted(found.image)
    assert found.label[place["class"]] == 1  # in the order of the ids, not of the file


def test_crowd_regions_are_no_objects():
    inside = result(12, 3, [5, 5, 10, 10], 0.9)
    other = result(12, 7, [5, 5, 10, 10], 0.8)
    half = result(12, 3, [50, 0, 20, 20], 0.7)  # not more than half of it is inside
    errors = find_errors(TRUTH, [inside, other, half])
    assert errors.detections.ignored.tolist() == [True, False, False]
    assert errors.detections.crowd == pytest.approx([1, 1, 0.5])
    assert kinds_of(errors) == dict.fromkeys(range(3), "background")
    assert errors.objects.missed.all()


def test_detections_above_the_limit_are_counted():
    many = [result(10, 7, [10, 10, 20, 20], score / 10) for score in range(1, 6)]
    errors = find_errors(TRUTH, [*many, result(11, 7, [60, 40, 10, 10], 0.01)], max_detections=2)
    assert errors.detections.result.tolist() == [4, 3, 5]
    assert errors.left_out == 3


def test_nothing_at_all():
    errors = find_errors(TRUTH, [])
    assert errors.objects.missed.all()
    assert len(errors.detections.kind) == 0
    errors = find_errors(scene([], 2, [1]), [result(10, 1, [1, 1, 2, 2], 0.5)])
    assert kinds_of(errors) == {0: "background"}
    with pytest.raises(ValueError, match="the detections have no masks"):
        find_errors(TRUTH, [PLANTED["both"]], "segm")
    with pytest.raises(ValueError, match="detection 0: image_id 99 is not in the annotation file"):
        find_errors(TRUTH, [result(99, 7, [1, 1, 2, 2], 0.5)])


def overlap(a: list[float], b: list[float], *, crowd: bool = False) -> float:
    width = max(min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1]), 0)
    both = width * height
    return both / (a[2] * a[3] if crowd else a[2] * a[3] + b[2] * b[3] - both)


def by_loops(truth: dict, results: list[dict], most: int) -> tuple[dict, set, set]:
    """Kinds by index of the result, ids of missed annotations, and ignored results."""
    kinds, missed, ignored = {}, set(), set()
    for image in truth["images"]:
        here = [entry for entry in truth["annotations"] if entry["image_id"] == image["id"]]
        objects = [entry for entry in here if not entry["iscrowd"]]
        rows = [row for row, entry in enumerate(results) if entry["image_id"] == image["id"]]
        rows = sorted(rows, key=lambda row: -results[row]["score"])[:most]
        taken = {}
        for row in rows:
            entry, best = results[row], None
            for each in objects:
                iou = overlap(entry["bbox"], each["bbox"])
                fits = each["category_id"] == entry["category_id"] and each["id"] not in taken and iou >= 0.5
                if fits and (best is None or iou > best[0]):
                    best = iou, each["id"]
            if best:
                taken[best[1]] = row
        usable = set()
        for row in rows:
            entry = results[row]
            ious = {each["id"]: overlap(entry["bbox"], each["bbox"]) for each in objects}
            own = {each["id"]: ious[each["id"]] for each in objects if each["category_id"] == entry["category_id"]}
            other = {key: iou for key, iou in ious.items() if key not in own}
            if row in taken.values():
                kinds[row] = "correct"
                continue
            if any(
                overlap(entry["bbox"], crowd["bbox"], crowd=True) > 0.5
                for crowd in here
                if crowd["iscrowd"] and crowd["category_id"] == entry["category_id"]
            ):
                ignored.add(row)
            if own and 0.1 <= max(own.values()) <= 0.5:
                kinds[row] = "localization"
                usable.add(max(own, key=own.get))
            elif other and max(other.values()) >= 0.5:
                kinds[row] = "class"
                usable.add(max(other, key=other.get))
            elif any(iou >= 0.5 for key, iou in own.items() if key in taken):
                kinds[row] = "duplicate"
            else:
                kinds[row] = "background" if max(ious.values(), default=0) <= 0.1 else "both"
        missed |= {each["id"] for each in objects if each["id"] not in taken and each["id"] not in usable}
    return kinds, missed, ignored


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 4), st.sampled_from([3, 100]))
def test_random_detections_against_loops(seed, images, classes, most):
    truth, results = random_scene(seed, images, classes)
    errors = find_errors(truth, results, max_detections=most)
    kinds, missed, ignored = by_loops(truth, results, most)
    assert kinds_of(errors) == kinds
    found, objects = errors.detections, errors.objects
    assert {truth["annotations"][index]["id"] for index in objects.annotation[objects.missed]} == missed
    assert {*found.result[found.ignored].tolist()} == ignored
    assert errors.left_out == len(results) - len(kinds)
    # each object is fixed by the error of class or localization with the highest score
    for row in np.flatnonzero((found.truth >= 0) & np.isin(found.kind, (1, 2))):
        each = found.truth[row]
        if objects.matched[each] < 0:
            assert found.score[objects.fixed_by[each]] >= found.score[row]
