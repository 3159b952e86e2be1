"""The confusion matrix: each kind of match and error planted, and the matrices of other libraries."""

import math
import random

import numpy as np
import pytest

from engine.evaluation.box_matches import match_boxes
from engine.evaluation.confusion import count_confusion
from engine.evaluation.score_report import score_report

NAMES = ("bolt", "nut", "screw")
CATEGORIES = [{"id": 10 * (index + 1), "name": name} for index, name in enumerate(NAMES)]


def truth_of(images: int, annotations) -> dict:
    """Annotations are image, class name, box, and optionally crowd."""
    ids = {category["name"]: category["id"] for category in CATEGORIES}
    return {
        "images": [{"id": index, "width": 128, "height": 128} for index in range(1, images + 1)],
        "categories": CATEGORIES,
        "annotations": [
            {"id": k, "image_id": image, "category_id": ids[name], "bbox": box, "area": 1, "iscrowd": int(bool(crowd))}
            for k, (image, name, box, *crowd) in enumerate(annotations, start=1)
        ],
    }


def results_of(detections) -> list[dict]:
    ids = {category["name"]: category["id"] for category in CATEGORIES}
    return [
        {"image_id": image, "category_id": ids[name], "bbox": box, "score": score}
        for image, name, box, score in detections
    ]


def at(score: float, **own: float) -> dict:
    return {"score_threshold": score, "per_class_score_threshold": dict.fromkeys(NAMES, math.nan) | own}


def test_each_kind_of_match_and_error():
    truth = truth_of(
        5,
        [
            (1, "bolt", [0, 0, 20, 20]),  # found, and found again
            (1, "nut", [40, 0, 20, 20]),  # detected as a screw, and as a nut in the wrong place
            (1, "screw", [80, 0, 20, 20]),  # missed: one detection is elsewhere, the other has a low score
            (2, "nut", [0, 0, 60, 60], "crowd"),
            (2, "nut", [80, 80, 20, 20]),  # found
            (2, "bolt", [40, 100, 20, 20]),  # detected as two other classes: that with the higher IoU counts
            (5, "bolt", [0, 0, 60, 60], "crowd"),  # not an image without objects
        ],
    )
    results = results_of(
        [
            (1, "bolt", [0, 0, 20, 20], 0.9),
            (1, "bolt", [1, 0, 20, 20], 0.8),  # duplicate
            (1, "screw", [2, 0, 20, 20], 0.7),  # duplicate: another class on an object that is found
            (1, "screw", [40, 1, 20, 20], 0.7),  # confusion
            (1, "nut", [52, 0, 20, 20], 0.6),  # badly placed: IoU 0.25
            (1, "bolt", [80, 12, 20, 20], 0.6),  # false alarm: IoU 0.25, but with an object of another class
            (1, "screw", [80, 0, 20, 20], 0.3),  # below the threshold
            (2, "nut", [5, 5, 30, 30], 0.9),  # in the crowd region: not counted
            (2, "nut", [80, 80, 20, 19], 0.9),
            (2, "bolt", [5, 5, 30, 30], 0.9),  # false alarm: the crowd region is of another class
            (2, "nut", [44, 100, 20, 20], 0.9),  # duplicate
            (2, "screw", [42, 100, 20, 20], 0.6),  # confusion
            (3, "nut", [0, 0, 9, 9], 0.9),  # false alarms on an image without objects
            (3, "screw", [0, 0, 9, 9], 0.5),
        ]
    )
    found = count_confusion(match_boxes(truth, results), at(0.5))
    assert found.matrix.tolist() == [[1, 0, 1], [0, 1, 1], [0, 0, 0]]
    assert found.missed.tolist() == [0, 0, 1]
    assert found.duplicates.tolist() == [1, 1, 1]
    assert found.badly_placed.tolist() == [0, 1, 0]
    assert found.false_alarms.tolist() == [2, 1, 1]
    assert found.metrics() == {
        "empty_images": 2,
        "empty_detections_per_image": 1.0,
        "empty_images_with_detections_frac": 0.5,
    }
    assert found.largest() == [("bolt", "screw", 1), ("nut", "screw", 1)]
    shown = found.as_json()
    assert shown["confusions"][1:] == [{"true_class": "nut", "detected_class": "screw", "objects": 1}]
    assert shown["per_class_correct"] == {"bolt": 1, "nut": 1, "screw": 0}
    assert shown["per_class_missed"] == {"bolt": 0, "nut": 0, "screw": 1}
    # each class has its own threshold, otherwise that of all classes, otherwise 0.5
    lower = count_confusion(match_boxes(truth, results), at(0.95, screw=0.3))
    assert lower.thresholds.tolist() == [0.95, 0.95, 0.3]
    # a detection of the right class goes before one of another class
    assert lower.matrix.tolist() == [[0, 0, 2], [0, 0, 1], [0, 0, 1]]
    assert count_confusion(match_boxes(truth, results), at(math.nan)).thresholds.tolist() == [0.5, 0.5, 0.5]


def drawn(seed: int) -> tuple[list, list]:
    """Objects with several nearby detections each, of the right or another class, and boxes elsewhere."""
    draw = random.Random(seed)

    def box():
        return [draw.uniform(0, 70), draw.uniform(0, 70), draw.uniform(15, 40), draw.uniform(15, 40)]

    truth, results = [], []
    for image in range(1, 41):
        for _ in range(draw.randint(0, 4)):
            own, label = box(), draw.randint(1, 3)
            truth.append((image, NAMES[label - 1], own))
            for _ in range(draw.randint(0, 3)):
                near = [value + draw.gauss(0, 3) for value in own]
                found = label if draw.random() < 0.7 else draw.randint(1, 3)
                results.append((image, NAMES[found - 1], near, draw.random()))
        for _ in range(draw.randint(0, 2)):
            label = draw.randint(1, 3)
            results.append((image, NAMES[label - 1], box(), draw.random()))
    return truth, results


# Matrices of the detections of `drawn` with a score above 0.25 at IoU 0.5. Rows are true classes, then false positives;
# columns are detected classes, then missed objects.
# supervision 0.31.2: ConfusionMatrix.evaluate_detection_batch; Ultralytics 8.4.190: ConfusionMatrix.process_batch,
# transposed
SUPERVISION = {
    0: [[15, 2, 2, 9], [2, 8, 1, 15], [0, 0, 18, 13], [30, 19, 22, 0]],
    1: [[13, 0, 1, 14], [1, 10, 0, 10], [1, 1, 11, 13], [21, 23, 25, 0]],
    2: [[17, 1, 1, 13], [0, 10, 1, 18], [1, 2, 18, 12], [26, 17, 26, 0]],
}
ULTRALYTICS = {
    0: [[14, 4, 1, 9], [3, 7, 1, 15], [5, 1, 12, 13], [25, 17, 29, 0]],
    1: [[13, 0, 1, 14], [2, 8, 1, 10], [0, 1, 11, 14], [21, 25, 24, 0]],
    2: [[16, 2, 2, 12], [0, 9, 2, 18], [2, 2, 17, 12], [26, 17, 25, 0]],
}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_matrix_of_other_libraries(seed):
    truth, results = drawn(seed)
    found = count_confusion(match_boxes(truth_of(40, truth), results_of(results)), at(0.25))
    matrix = np.zeros((4, 4), int)
    matrix[:3, :3], matrix[:3, 3] = found.matrix, found.missed
    matrix[3, :3] = found.duplicates + found.badly_placed + found.false_alarms
    supervision, ultralytics = np.array(SUPERVISION[seed]), np.array(ULTRALYTICS[seed])
    if seed == 1:
        # an object with two detections of its class is matched with that of the higher score here and of the higher IoU
        # there; a screw is then free for the other one, a bolt
        supervision[[2, 3], 0] += [-1, 1]
        supervision[2, 3] += 1
    assert (matrix == supervision).all()
    # Ultralytics takes detections in order of their scores, of any class: fewer are on the diagonal
    assert (matrix.diagonal() >= ultralytics.diagonal()).all()
    assert (matrix[:3].sum(1) == ultralytics[:3].sum(1)).all()  # objects
    assert (matrix[:, :3].sum(0) == ultralytics[:, :3].sum(0)).all()  # detections


def test_the_diagonal_has_the_counts_of_precision_and_recall():
    truth, results = drawn(5)
    truth[::7] = [(*entry, "crowd") for entry in truth[::7]]
    report = score_report(truth_of(40, truth), results_of(results))
    confusion, metrics = report.confusion, report.metrics
    wrong = confusion.duplicates + confusion.badly_placed + confusion.false_alarms
    detections = confusion.matrix.sum(0) + wrong
    for index, name in enumerate(NAMES):
        correct = confusion.matrix[index, index]
        assert metrics["per_class_recall"][name] == correct / metrics["per_class_objects"][name]
        assert metrics["per_class_precision"][name] == correct / detections[index]
    assert [*report.curves] == [*NAMES]


def test_without_objects_and_without_detections():
    blank = score_report(truth_of(2, []), results_of([(1, "nut", [0, 0, 9, 9], 0.6), (1, "nut", [0, 0, 9, 9], 0.4)]))
    assert math.isnan(blank.metrics["score_threshold"])
    assert all(math.isnan(value) for value in blank.metrics["per_class_F1"].values())
    assert blank.metrics["empty_detections_per_image"] == 0.5  # the detection from 0.5 on
    assert blank.confusion.false_alarms.tolist() == [0, 1, 0]
    silent = score_report(truth_of(1, [(1, "nut", [0, 0, 9, 9])]), [])
    assert silent.confusion.missed.tolist() == [0, 1, 0]
    assert math.isnan(silent.metrics["empty_detections_per_image"])
    assert math.isnan(silent.metrics["per_class_score_threshold"]["nut"])
