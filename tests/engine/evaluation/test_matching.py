"""Classification of detections, against a loop over all pairs and against pycocotools."""

import contextlib
import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from engine.evaluation.matching import MATCH_TYPES, classify_detections


def overlap(a, b):
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def by_loops(boxes, labels, scores, true_boxes, true_labels, threshold):
    error_types, taken = {}, set()
    for place in sorted(range(len(boxes)), key=lambda place: (-scores[place], place)):
        best, error_type = -1.0, "false_positive"
        for other in range(len(true_boxes)):
            iou = overlap(boxes[place], true_boxes[other])
            if iou < threshold:
                continue
            if labels[place] != true_labels[other]:
                error_type = "wrong_class" if error_type == "false_positive" else error_type
            elif other in taken:
                error_type = "duplicate" if error_type != "true_positive" else error_type
            elif iou > best:
                best, error_type, match = iou, "true_positive", other
        if error_type == "true_positive":
            taken.add(match)
        error_types[place] = error_type
    return [error_types[place] for place in range(len(boxes))], [n for n in range(len(true_boxes)) if n not in taken]


def classify(boxes, labels, scores, true_boxes, true_labels, **options):
    return classify_detections(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(scores, dtype=torch.float32),
        torch.tensor(true_boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(true_labels, dtype=torch.int64),
        **options,
    )


# on a coarse grid, so that boxes often meet, and IoUs of 0.5 and equal scores happen
BOX = st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(1, 4), st.integers(1, 3)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)
FOUND = st.lists(st.tuples(BOX, st.integers(1, 3), st.integers(1, 4).map(lambda score: score / 4)), max_size=8)
TRUE = st.lists(st.tuples(BOX, st.integers(1, 3)), max_size=5)


@given(found=FOUND, true=TRUE, threshold=st.sampled_from([0.25, 0.5, 0.75, 1.0]))
def test_as_a_loop_over_all_pairs(found, true, threshold):
    columns = [*map(list, zip(*found, strict=True))] or [[], [], []]
    true_columns = [*map(list, zip(*true, strict=True))] or [[], []]
    error_types = classify(*columns, *true_columns, iou_threshold=threshold)
    assert error_types == by_loops(*columns, *true_columns, threshold)
    assert {*error_types.detections} <= {*MATCH_TYPES}
    assert error_types.detections.count("true_positive") + len(error_types.missed) == len(true)


def test_each_match_type():
    truth = [[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]], [1, 2, 3]
    boxes = [[1, 0, 11, 10], [0, 0, 10, 10], [20, 1, 30, 11], [60, 0, 70, 10], [0, 0, 10, 5.0], [40, 6, 50, 16]]
    labels, scores = [1, 1, 1, 1, 2, 3], [0.6, 0.9, 0.8, 0.7, 0.5, 0.4]
    error_types = classify(boxes, labels, scores, *truth)
    assert error_types.detections == [
        "duplicate",
        "true_positive",
        "wrong_class",
        "false_positive",
        "wrong_class",
        "false_positive",
    ]
    assert error_types.missed == [1, 2]


def test_a_free_box_is_preferred_and_of_these_the_nearest():
    truth = [[0, 0, 10, 10], [0, 2, 10, 12], [0, 3, 10, 13]], [1, 1, 1]
    assert classify([[0, 2, 10, 12]] * 4, [1] * 4, [0.4, 0.3, 0.2, 0.1], *truth) == (
        ["true_positive"] * 3 + ["duplicate"],
        [],
    )
    assert classify([[0, 2, 10, 12]], [1], [0.4], *truth).missed == [0, 2]


def test_nothing_found_and_nothing_there():
    assert classify([], [], [], [[0, 0, 4, 4]], [1]) == ([], [0])
    assert classify([[0, 0, 4, 4]], [1], [0.5], [], []) == (["false_positive"], [])
    assert classify([], [], [], [], []) == ([], [])


@pytest.mark.parametrize("seed", range(5))
def test_what_is_right_is_what_pycocotools_matches(seed):
    generator = torch.Generator().manual_seed(seed)

    def boxes(count):
        corners = torch.rand(count, 2, generator=generator) * 30
        return torch.cat([corners, corners + 5 + 25 * torch.rand(count, 2, generator=generator)], 1)

    true_boxes, found = boxes(8), boxes(40)
    true_labels, labels = (torch.randint(1, 4, (count,), generator=generator) for count in (8, 40))
    scores = torch.rand(40, generator=generator)
    error_types = classify_detections(found, labels, scores, true_boxes, true_labels)

    def xywh(box):
        return [box[0], box[1], box[2] - box[0], box[3] - box[1]]

    truth = COCO()
    with contextlib.redirect_stdout(io.StringIO()):
        truth.dataset = {
            "images": [{"id": 1}],
            "categories": [{"id": label} for label in (1, 2, 3)],
            "annotations": [
                {"id": n + 1, "image_id": 1, "category_id": label, "bbox": xywh(box), "area": 9e3, "iscrowd": 0}
                for n, (box, label) in enumerate(zip(true_boxes.tolist(), true_labels.tolist(), strict=True))
            ],
        }
        truth.createIndex()
        results = truth.loadRes(
            [
                {"image_id": 1, "category_id": label, "bbox": xywh(box), "score": score}
                for box, label, score in zip(found.tolist(), labels.tolist(), scores.tolist(), strict=True)
            ]
        )
        judged = COCOeval(truth, results, "bbox")
        judged.evaluate()
    matched, unmatched = set(), set()
    for entry in judged.evalImgs[:: len(judged.params.areaRng)]:  # of "all" areas
        if entry is not None:
            pairs = zip(entry["dtIds"], entry["dtMatches"][0], strict=True)
            matched |= {detection - 1 for detection, match in pairs if match}
            unmatched |= {n - 1 for n, match in zip(entry["gtIds"], entry["gtMatches"][0], strict=True) if not match}
    assert {n for n, error_type in enumerate(error_types.detections) if error_type == "true_positive"} == matched
    assert {*error_types.missed} == unmatched
    assert matched
