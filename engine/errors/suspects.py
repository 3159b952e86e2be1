"""Labels that the detections of a data set make suspect: objects without a label, and labels that may be wrong."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..evaluation import BACKGROUND, BACKGROUND_IOU, CLASS, CORRECT, MATCH_IOU, Errors, overlaps

MISSING_LABEL, OTHER_CLASS, NOTHING_FOUND = "missing_label", "other_class", "nothing_found"
SUSPICIONS = {
    MISSING_LABEL: "a confident detection where no object is labelled",
    OTHER_CLASS: "a labelled object that is confidently detected as another class",
    NOTHING_FOUND: "a labelled object that no detection of any class and score overlaps with an IoU of 0.5",
}


class Suspect(NamedTuple):
    """A suspect label.

    Attributes:
        suspicion: one of `SUSPICIONS`.
        detection: index of the detection in `ErrorDetections`, -1 for none.
        object: index of the object in `TrueObjects`, -1 for none.
    """

    suspicion: str
    detection: int
    object: int


def confident_scores(errors: Errors, score: float | None = None) -> NDArray[np.float64]:
    """Return the score of each class from which a detection is confident.

    Args:
        errors: result of `find_errors`.
        score: the score for all classes. None: the median score of the correct detections of the class, or of all
            classes if the class has none; infinite without any correct detection. Scores of different detectors and
            classes are then comparable.
    """
    if score is not None:
        return np.full(errors.num_classes, score)
    found = errors.detections
    correct = found.kind == CORRECT
    overall = np.median(found.score[correct]) if correct.any() else np.inf
    scores = [found.score[correct & (found.label == label)] for label in range(errors.num_classes)]
    return np.array([np.median(own) if own.size else overall for own in scores])


def find_suspects(
    errors: Errors, results: Sequence[dict[str, Any]], ground_truth: dict[str, Any], confident: NDArray[np.float64]
) -> dict[str, list[Suspect]]:
    """Find suspect labels.

    - "missing_label": confident detections with an IoU below 0.1 with all objects and crowd regions. Only the
      one with the highest score at each place. Highest scores first.
    - "other_class": objects with a confident error of class, which has a higher score than the correct detection, if
      there is one. Highest scores first.
    - "nothing_found": objects with an IoU below 0.5 with all detections. Largest boxes first, because small objects are
      often missed although their label is right.

    Args:
        errors: result of `find_errors`.
        results: the COCO results.
        ground_truth: the loaded COCO instances file.
        confident: see `confident_scores`.
    """
    found, objects = errors.detections, errors.objects
    is_confident = found.score >= confident[found.label]
    alone = is_confident & (found.kind == BACKGROUND) & (found.iou < BACKGROUND_IOU) & (found.crowd < BACKGROUND_IOU)
    missing = _one_for_each_place(np.flatnonzero(alone), errors, results)
    other_class = {}
    for row in _best_first(np.flatnonzero(is_confident & (found.kind == CLASS) & ~found.ignored), found.score):
        matched = objects.matched[found.truth[row]]
        if matched < 0 or found.score[matched] < found.score[row]:
            other_class.setdefault(int(found.truth[row]), int(row))
    unfound = np.flatnonzero(objects.best_iou < MATCH_IOU)
    boxes = [ground_truth["annotations"][index]["bbox"] for index in objects.annotation[unfound]]
    largest = unfound[np.argsort([-box[2] * box[3] for box in boxes], kind="stable")]
    return {
        MISSING_LABEL: [Suspect(MISSING_LABEL, row, -1) for row in missing],
        OTHER_CLASS: [Suspect(OTHER_CLASS, row, each) for each, row in other_class.items()],
        NOTHING_FOUND: [Suspect(NOTHING_FOUND, -1, int(each)) for each in largest],
    }


def _one_for_each_place(rows: NDArray[np.int64], errors: Errors, results: Sequence[dict[str, Any]]) -> list[int]:
    """Return detections, best first, without detections that overlap a better one of any class."""
    found = errors.detections
    kept: dict[int, list[int]] = defaultdict(list)
    for row in _best_first(rows, found.score):
        before = kept[int(found.image[row])]
        boxes = [results[found.result[other]]["bbox"] for other in before]
        if (overlaps([results[found.result[row]]["bbox"]], boxes) < MATCH_IOU).all():
            before.append(int(row))
    return _best_first(np.array([*chain(*kept.values())], dtype=np.int64), found.score).tolist()


def _best_first(rows: NDArray[np.int64], scores: NDArray[np.float64]) -> NDArray[np.int64]:
    return rows[np.argsort(-scores[rows], kind="stable")]
