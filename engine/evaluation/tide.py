"""Kinds of errors of a detector, as TIDE defines them (https://arxiv.org/abs/2008.08115)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data import declared_size

from .matching import match_greedily
from .metrics import MAX_DETECTIONS
from .overlap import overlaps, result_shapes, true_shapes
from .results import check_results, has_masks

# Codes of detections in `ClassifiedDetections.kind`; missed objects have no detection.
CORRECT, CLASS, LOCALIZATION, BOTH, DUPLICATE, BACKGROUND, MISSED_OBJECT = range(7)
# Names of the kinds of errors, in the order of a table.
ERROR_KINDS = {
    "class": CLASS,
    "localization": LOCALIZATION,
    "both": BOTH,
    "duplicate": DUPLICATE,
    "background": BACKGROUND,
    "missed": MISSED_OBJECT,
}
MATCH_IOU = 0.5
BACKGROUND_IOU = 0.1


class ErrorDetections(NamedTuple):
    """Detections with their kinds, in the order of the images, in each image in order of descending score.

    Attributes:
        result: `(n,)` index in the results.
        image: `(n,)` index of the image in the annotation file.
        label: `(n,)` index of the category, in ascending order of the ids.
        score: `(n,)`.
        kind: `(n,)` `CORRECT`, or the code of an error.
        ignored: `(n,)` whether the detection is in a crowd region of its class: AP does not count it.
        truth: `(n,)` index of the object that the detection matches, or that makes it an error of its kind; -1 for
            none. For "both" and "background" the object with the highest IoU.
        iou: `(n,)` IoU with that object, 0 without one.
        crowd: `(n,)` highest fraction of the detection in a crowd region of any class.
    """

    result: NDArray[np.int64]
    image: NDArray[np.int64]
    label: NDArray[np.int64]
    score: NDArray[np.float64]
    kind: NDArray[np.int64]
    ignored: NDArray[np.bool_]
    truth: NDArray[np.int64]
    iou: NDArray[np.float64]
    crowd: NDArray[np.float64]


class TrueObjects(NamedTuple):
    """Objects of the annotation file without crowd regions, in the order of the images.

    Attributes:
        annotation: `(m,)` index of the annotation.
        image: `(m,)` index of the image in the annotation file.
        label: `(m,)` index of the category, in ascending order of the ids.
        matched: `(m,)` index of the detection that is correct, -1 for none.
        fixed_by: `(m,)` for objects without a correct detection: index of the detection with the highest score among
            the errors of class and localization that belong to the object; -1 for none.
        best_iou: `(m,)` highest IoU of any detection of any class.
    """

    annotation: NDArray[np.int64]
    image: NDArray[np.int64]
    label: NDArray[np.int64]
    matched: NDArray[np.int64]
    fixed_by: NDArray[np.int64]
    best_iou: NDArray[np.float64]

    @property
    def missed(self) -> NDArray[np.bool_]:
        """Objects that no detection matches, and that no error of class or localization belongs to."""
        return (self.matched < 0) & (self.fixed_by < 0)


class Errors(NamedTuple):
    """Detections and objects of a data set with their kinds of errors.

    Attributes:
        detections: the detections.
        objects: the objects.
        num_classes: number of categories.
        left_out: number of results that are not counted, because their image has more than `max_detections`.
    """

    detections: ErrorDetections
    objects: TrueObjects
    num_classes: int
    left_out: int


def find_errors(
    ground_truth: dict[str, Any],
    results: list[dict[str, Any]],
    kind: str = "bbox",
    *,
    max_detections: int = MAX_DETECTIONS,
) -> Errors:
    """Find the kind of each detection, and the objects that are missed.

    A detection is correct if an object of its class is free and has an IoU of at least 0.5. Detections choose in order
    of descending score, and take the free object with the highest IoU. The kind of each other detection is the first of
    these that applies:

    - "localization": the highest IoU with an object of its class is at least 0.1 and at most 0.5.
    - "class": the IoU with an object of another class is at least 0.5.
    - "duplicate": the IoU with a matched object of its class is at least 0.5.
    - "background": the IoU with all objects is at most 0.1.
    - "both": all other cases, for example a wrong class at a wrong place.

    An object is "missed" if no detection matches it, and no error of class or localization belongs to it.

    Args:
        ground_truth: loaded COCO instances file.
        results: COCO results, see `coco_metrics`.
        kind: "bbox" for the IoU of boxes, "segm" for the IoU of masks.
        max_detections: number of detections that count in an image, those with the highest scores. As in TIDE, they
            are counted over all classes; COCO counts the detections of each class.

    Raises:
        ValueError: see `coco_metrics`.
    """
    results = check_results(ground_truth, results)
    if kind == "segm" and results and not has_masks(results):
        raise ValueError("masks cannot be evaluated: the detections have no masks")
    images, annotations = ground_truth["images"], ground_truth["annotations"]
    sizes = {entry["id"]: declared_size(entry) for entry in images}
    labels, found_in = places(ground_truth, results)
    true_labels, true_in = places(ground_truth, annotations)
    scores = np.array([entry["score"] for entry in results], dtype=np.float64)
    is_crowd = np.array([bool(entry["iscrowd"]) for entry in annotations], dtype=bool)
    by_image = _spans(found_in, np.lexsort((-scores, found_in)), len(images))
    true_by_image = _spans(true_in, np.argsort(true_in, kind="stable"), len(images))
    parts: list[tuple[ErrorDetections, TrueObjects]] = []
    rows_before = objects_before = 0
    for image, (rows, here) in enumerate(zip(by_image, true_by_image, strict=True)):
        rows = rows[:max_detections]
        true, crowd = here[~is_crowd[here]], here[is_crowd[here]]
        shapes = result_shapes([results[row] for row in rows], sizes, kind)
        iou = overlaps(shapes, true_shapes([annotations[each] for each in true], sizes, kind))
        inside = overlaps(shapes, true_shapes([annotations[each] for each in crowd], sizes, kind), crowd=True)
        own_crowd = (inside > MATCH_IOU) & (labels[rows][:, None] == true_labels[crowd])
        kinds, truth, matched, fixed_by = _classify(iou, labels[rows][:, None] == true_labels[true])
        parts.append(
            (
                ErrorDetections(
                    result=rows,
                    image=np.full(len(rows), image),
                    label=labels[rows],
                    score=scores[rows],
                    kind=kinds,
                    ignored=own_crowd.any(axis=1) & (kinds != CORRECT),
                    truth=_shifted(truth, objects_before),
                    iou=np.append(iou, np.zeros((len(rows), 1)), axis=1)[np.arange(len(rows)), truth],  # -1: 0
                    crowd=inside.max(axis=1, initial=0.0),
                ),
                TrueObjects(
                    annotation=true,
                    image=np.full(len(true), image),
                    label=true_labels[true],
                    matched=_shifted(matched, rows_before),
                    fixed_by=_shifted(fixed_by, rows_before),
                    best_iou=iou.max(axis=0, initial=0.0),
                ),
            )
        )
        rows_before += len(rows)
        objects_before += len(true)
    detections, objects = (
        type(part[0])(*map(np.concatenate, zip(*part, strict=True))) for part in zip(*parts, strict=True)
    )
    return Errors(detections, objects, len(ground_truth["categories"]), len(results) - rows_before)


def places(ground_truth: dict[str, Any], entries: Sequence[dict[str, Any]]) -> tuple[NDArray[np.int64], ...]:
    """Return the index of the category, in ascending order of the ids, and of the image of results or annotations."""
    label_of = {key: index for index, key in enumerate(sorted(entry["id"] for entry in ground_truth["categories"]))}
    image_of = {entry["id"]: index for index, entry in enumerate(ground_truth["images"])}
    labels = [label_of[entry["category_id"]] for entry in entries]
    return np.array(labels, dtype=np.int64), np.array(
        [image_of[entry["image_id"]] for entry in entries], dtype=np.int64
    )


def _spans(images: NDArray[np.int64], order: NDArray[np.int64], count: int) -> list[NDArray[np.int64]]:
    """Split `order`, which sorts entries by image, into the entries of each image."""
    return np.split(order, np.searchsorted(images[order], np.arange(1, count)))[:count]


def _shifted(indices: NDArray[np.int64], by: int) -> NDArray[np.int64]:
    """Add a number to indices, except -1."""
    return np.where(indices >= 0, indices + by, -1)


def _classify(iou: NDArray[np.float64], same: NDArray[np.bool_]) -> tuple[NDArray[np.int64], ...]:
    """Classify the detections of an image, best first.

    Args:
        iou: `(n, m)` IoU of detections and objects.
        same: `(n, m)` whether both have the same class.

    Returns:
        `(n,)` kinds and objects, and for each object `(m,)` the detection that matches it, and the one that fixing an
        error would match; see `ErrorDetections` and `TrueObjects`.
    """
    rows, columns = iou.shape
    matched, fixed_by = np.full(columns, -1), np.full(columns, -1)
    if not columns:
        return np.full(rows, BACKGROUND), np.full(rows, -1), matched, fixed_by
    own = iou * same
    match = match_greedily(own, MATCH_IOU)
    hits = np.flatnonzero(match >= 0)
    matched[match[hits]] = hits
    other, taken = iou * ~same, own * (matched >= 0)
    best = own.max(axis=1)
    kinds = np.select(
        [
            match >= 0,
            (best >= BACKGROUND_IOU) & (best <= MATCH_IOU),
            other.max(axis=1) >= MATCH_IOU,
            taken.max(axis=1) >= MATCH_IOU,
            iou.max(axis=1) <= BACKGROUND_IOU,
        ],
        [CORRECT, LOCALIZATION, CLASS, DUPLICATE, BACKGROUND],
        BOTH,
    )
    truth = np.select(
        [kinds == CORRECT, kinds == LOCALIZATION, kinds == CLASS, kinds == DUPLICATE, iou.max(axis=1) > 0],
        [match, own.argmax(axis=1), other.argmax(axis=1), taken.argmax(axis=1), iou.argmax(axis=1)],
        -1,
    )
    fixable = np.flatnonzero((kinds == CLASS) | (kinds == LOCALIZATION))[::-1]
    fixable = fixable[matched[truth[fixable]] < 0]
    fixed_by[truth[fixable]] = fixable  # of several detections, the last assignment counts: the highest score
    return kinds, truth, matched, fixed_by
