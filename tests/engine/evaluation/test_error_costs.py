"""The cost of errors, against the figures of TIDE's own package and against loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.evaluation.coco_eval import coco_metrics
from engine.evaluation.error_costs import average_precisions, error_costs
from engine.evaluation.tide import ERROR_KINDS, find_errors
from tests.engine.evaluation.scenes import annotation, random_scene, scene

# tidecv 1.0.1 (https://github.com/dbolya/tide) on `random_scene(7)`, by kind of IoU and detections per image: AP50,
# count and dAP in the order of `ERROR_KINDS` (counts without ignored detections), dAP of false positives and negatives
PEER = {
    ("bbox", 100): (
        0.3111503472025409,
        [12, 28, 11, 15, 36, 18],
        [0.051294699321, 0.146859705428, 0.011830107247, 0.007125039081, 0.059694879789, 0.116888601888],
        [0.31508727656, 0.179709640931],
    ),
    ("bbox", 6): (
        0.2644022627052622,
        [8, 19, 7, 3, 33, 23],
        [0.060955853989, 0.170634089993, 0.008736119292, 0.00069378677, 0.046240508303, 0.142409040799],
        [0.230647242245, 0.266691833574],
    ),
    ("segm", 100): (
        0.29001755414972474,
        [13, 30, 13, 14, 33, 16],
        [0.057153187577, 0.1951272158, 0.014067451236, 0.005248178273, 0.043044394444, 0.090516389848],
        [0.306517099316, 0.193188926186],
    ),
    ("segm", 6): (
        0.24462306694470334,
        [9, 22, 8, 3, 30, 21],
        [0.065677093916, 0.203348847449, 0.008328172932, 0.000709750323, 0.03505371295, 0.109813526844],
        [0.220723467709, 0.276627818406],
    ),
}


@pytest.mark.parametrize(("kind", "most"), PEER)
def test_figures_of_tide(kind, most):
    ap, counts, costs, special = PEER[kind, most]
    truth, results = random_scene(7)
    errors = find_errors(truth, results, kind, max_detections=most)
    found = error_costs(errors)
    assert found.ap == pytest.approx(ap, abs=1e-12)
    assert [*found.kinds] == [*ERROR_KINDS]
    assert [*found.kinds.values()] == pytest.approx(costs, abs=1e-11)
    assert [found.false_positives, found.false_negatives] == pytest.approx(special, abs=1e-11)
    counted = np.bincount(errors.detections.kind[~errors.detections.ignored], minlength=7).tolist()
    assert [*counted[1:6], int(errors.objects.missed.sum())] == counts


def ap_by_loops(points: list[tuple[float, bool]], positives: int) -> float:
    """AP of one class from (score, correct), in the order of the detections."""
    precisions, recalls, right = [], [], 0
    for place, (_, correct) in enumerate(sorted(points, key=lambda point: -point[0]), start=1):
        right += correct
        precisions.append(right / place)
        recalls.append(right / positives)
    total = 0.0
    for step in range(101):
        total += max((p for p, r in zip(precisions, recalls, strict=True) if r >= step / 100), default=0.0)
    return total / 101


def mean_by_loops(errors, fix: str | None) -> float:
    """Mean AP with the errors of one kind fixed; every detection is decided on its own."""
    found, objects = errors.detections, errors.objects
    values = []
    for label in range(errors.num_classes):
        if label not in objects.label:
            continue
        missed = sum(int(objects.missed[j]) for j in range(len(objects.label)) if objects.label[j] == label)
        positives = int((objects.label == label).sum()) - (missed if fix == "missed" else 0)
        points = []
        for row in range(len(found.kind)):
            own, kind, truth = found.label[row], found.kind[row], found.truth[row]
            is_fixed = kind != 0 and fix in ERROR_KINDS and kind == ERROR_KINDS[fix]
            if is_fixed and fix in ("class", "localization") and objects.fixed_by[truth] == row:
                if objects.label[truth] == label:
                    points.append((found.score[row], True))
            elif not is_fixed and not found.ignored[row] and own == label:
                points.append((found.score[row], kind == 0))
        if positives:
            values.append(ap_by_loops(points, positives))
        elif points:
            values.append(0.0)
    return sum(values) / len(values) if values else float("nan")


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 4))
def test_costs_against_loops(seed, images, classes):
    errors = find_errors(*random_scene(seed, images, classes))
    costs = error_costs(errors)
    base = mean_by_loops(errors, None)
    assert costs.ap == pytest.approx(base, nan_ok=True)
    for kind in ERROR_KINDS:
        expected = mean_by_loops(errors, kind) - base
        if expected == expected:
            assert costs.kinds[kind] == pytest.approx(max(expected, 0), abs=1e-12)


def test_ap_is_that_of_coco():
    truth, results = random_scene(3, images=40)
    assert error_costs(find_errors(truth, results)).ap == pytest.approx(
        coco_metrics(truth, results, masks=False)["AP50"], abs=1e-4
    )


def test_each_kind_costs_what_its_fix_gives():
    """One class, two objects: the right detection alone has AP 51/101, since half of the recall is out of reach."""
    objects = [annotation(1, 10, 1, [0, 0, 20, 20]), annotation(2, 10, 1, [50, 0, 20, 20])]
    truth = scene(objects, 1, [1])
    right = {"image_id": 10, "category_id": 1, "bbox": [0, 0, 20, 20], "score": 0.5}
    costs = error_costs(find_errors(truth, [right]))
    assert costs.ap == pytest.approx(51 / 101)
    assert costs.kinds == pytest.approx(dict.fromkeys(ERROR_KINDS, 0) | {"missed": 50 / 101})
    assert (costs.false_positives, costs.false_negatives) == pytest.approx((0, 50 / 101))
    place = right | {"bbox": [60, 0, 20, 20], "score": 0.9}  # IoU 1/3 with the second object
    costs = error_costs(find_errors(truth, [right, place]))
    assert costs.ap == pytest.approx(0.5 * 51 / 101)
    assert costs.kinds == pytest.approx(dict.fromkeys(ERROR_KINDS, 0) | {"localization": 1 - costs.ap})
    assert costs.class_kinds["localization"] == pytest.approx([1 - costs.ap])


def test_classes_without_objects_do_not_count():
    truth = scene([annotation(1, 10, 1, [0, 0, 20, 20])], 1, [1, 2])
    results = [{"image_id": 10, "category_id": category, "bbox": [0, 0, 20, 20], "score": 0.5} for category in (1, 2)]
    costs = error_costs(find_errors(truth, results))
    assert costs.ap == 1
    assert np.isnan(costs.class_ap).tolist() == [False, True]
    assert np.isnan(error_costs(find_errors(scene([], 1, [1]), [])).ap)


def test_average_precision():
    labels, correct = np.array([0, 0, 1, 3]), np.array([False, True, True, False])
    scores = np.array([0.5, 0.5, 0.1, 0.2])  # equal scores keep their order
    found = average_precisions(labels, scores, correct, np.array([1, 2, 1, 0, 0]))
    assert found == pytest.approx([0.5, 51 / 101, 0, 0, np.nan], nan_ok=True)
