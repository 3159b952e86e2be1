"""Confusion matrix of a detector, with its false positives by kind, and its detections on images without objects."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.score_thresholds import thresholds_by_class

from .box_matches import BoxMatches
from .tide import MATCH_IOU

# Minimum score without any best threshold: the default of tools/predict.py
DEFAULT_SCORE = 0.5
Counts = NDArray[np.intp]


@dataclass(frozen=True)
class Confusion:
    """Numbers of detections and objects at given score thresholds.

    Every object is in one cell of `matrix` or in `missed`. Every detection with a sufficient score is in one cell of
    `matrix` or in `duplicates`, `badly_placed` or `false_alarms`, unless it matches a crowd region of its class.

    Attributes:
        class_names: name of each class.
        thresholds: `(C,)` minimum score of each class.
        matrix: `(C, C)` objects by true class (row) and detected class (column).
        missed: `(C,)` objects without a detection.
        duplicates: `(C,)` detections of an object, of any class, that has another detection.
        badly_placed: `(C,)` other detections with an IoU from 0.1 to 0.5 with an object of their class.
        false_alarms: `(C,)` all other detections.
        empty_images: number of images without objects and crowd regions.
        empty_images_with_detections: number of these images with a detection.
        empty_detections: number of detections in these images.
    """

    class_names: list[str]
    thresholds: NDArray[np.float64]
    matrix: Counts
    missed: Counts
    duplicates: Counts
    badly_placed: Counts
    false_alarms: Counts
    empty_images: int
    empty_images_with_detections: int
    empty_detections: int

    def metrics(self) -> dict[str, float]:
        """Return the figures of images without objects: a count, and two rates, which are NaN without such images."""
        count = self.empty_images
        rates = (self.empty_detections, self.empty_images_with_detections)
        per_image, fraction = (number / count if count else math.nan for number in rates)
        return {
            "empty_images": count,
            "empty_detections_per_image": per_image,
            "empty_images_with_detections_frac": fraction,
        }

    def largest(self) -> list[tuple[str, str, int]]:
        """Return true class, detected class and number of the confusions, the most frequent first."""
        wrong = self.matrix * (1 - np.eye(len(self.class_names), dtype=np.intp))
        cells = np.argwhere(wrong)
        cells = cells[np.argsort(-wrong[tuple(cells.T)], kind="stable")]
        return [
            (self.class_names[true], self.class_names[found], int(wrong[true, found])) for true, found in cells.tolist()
        ]

    def as_json(self) -> dict[str, Any]:
        """Return all counts as plain values."""
        kinds = ("missed", "duplicates", "badly_placed", "false_alarms")
        counts = {"correct": self.matrix.diagonal()} | {kind: getattr(self, kind) for kind in kinds}
        return {
            **{
                f"per_class_{name}": dict(zip(self.class_names, values.tolist(), strict=True))
                for name, values in counts.items()
            },
            "confusions": [
                {"true_class": true, "detected_class": found, "objects": count} for true, found, count in self.largest()
            ],
        }


def count_confusion(matches: BoxMatches, metrics: Mapping[str, Any]) -> Confusion:
    """Count the matches at the best threshold of each class.

    A class without its own threshold has the threshold of all classes, and without that `DEFAULT_SCORE`.

    Detections first take objects of their class, see `match_boxes`: so the diagonal has the counts of precision and
    recall. The remaining detections then take the remaining objects of other classes, in order of descending IoU. This
    is the order of supervision's `ConfusionMatrix`, which sorts by IoU instead of scores within a class too.

    Args:
        matches: result of `match_boxes`.
        metrics: result of `threshold_metrics`.
    """
    thresholds = np.nan_to_num(np.array([*thresholds_by_class(metrics).values()]), nan=DEFAULT_SCORE)
    used = matches.scores >= thresholds[matches.classes]
    partners = np.where(used, matches.partners, -1)
    left = used & (partners < 0) & ~matches.ignored
    partners = _match_other_classes(matches, partners, left)
    paired = partners >= 0

    size = len(matches.class_names)
    matrix = np.zeros((size, size), dtype=np.intp)
    np.add.at(matrix, (matches.true_classes[partners[paired]], matches.classes[paired]), 1)
    left &= ~paired
    detections, objects = matches.pairs.T
    overlapping, near = np.zeros((2, len(left)), dtype=bool)
    overlapping[detections[matches.ious >= MATCH_IOU]] = True
    near[detections[matches.classes[detections] == matches.true_classes[objects]]] = True
    kinds = (left & overlapping, left & ~overlapping & near, left & ~overlapping & ~near)

    return Confusion(
        matches.class_names,
        thresholds,
        matrix,
        matches.objects - matrix.sum(1),
        *(np.bincount(matches.classes[kind], minlength=size) for kind in kinds),
        **_on_empty_images(matches, used),
    )


def _match_other_classes(matches: BoxMatches, partners: Counts, left: NDArray[np.bool_]) -> Counts:
    """Return the partners after the remaining detections took the remaining objects, of any class."""
    is_free = np.ones(len(matches.true_classes), dtype=bool)
    is_free[partners[partners >= 0]] = False
    fits = (matches.ious >= MATCH_IOU) & left[matches.pairs[:, 0]] & is_free[matches.pairs[:, 1]]
    order = np.argsort(-matches.ious[fits], kind="stable")
    found, free = partners.tolist(), is_free.tolist()
    for detection, index in matches.pairs[fits][order].tolist():
        if found[detection] < 0 and free[index]:
            found[detection], free[index] = index, False
    return np.array(found, dtype=np.intp)


def _on_empty_images(matches: BoxMatches, used: NDArray[np.bool_]) -> dict[str, int]:
    detected = np.bincount(matches.images[used], minlength=len(matches.image_ids))[matches.empty_images]
    return {
        "empty_images": len(detected),
        "empty_images_with_detections": int(np.count_nonzero(detected)),
        "empty_detections": int(detected.sum()),
    }
