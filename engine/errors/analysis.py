"""All figures of the errors of a detector on a data set."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from data import declared_size, to_rle

from ..evaluation import (
    ERROR_KINDS,
    MAX_DETECTIONS,
    MISSED_OBJECT,
    ErrorCosts,
    Errors,
    class_keys,
    error_costs,
    find_errors,
    image_size,
)
from .suspects import Suspect, confident_scores, find_suspects


@dataclass(frozen=True)
class ErrorAnalysis:
    """Errors of a detector on a data set, their cost, and suspect labels.

    Attributes:
        ground_truth: loaded COCO instances file.
        results: COCO results, each with a box.
        class_names: names of the categories in ascending order of the ids.
        kind: "bbox" if the IoU of boxes was used, "segm" for masks.
        errors: kinds of all detections and objects.
        costs: what they cost in AP at IoU 0.5.
        suspects: suspect labels by suspicion.
    """

    ground_truth: dict[str, Any]
    results: list[dict[str, Any]]
    class_names: list[str]
    kind: str
    errors: Errors
    costs: ErrorCosts
    suspects: dict[str, list[Suspect]]

    def detection(self, row: int) -> dict[str, Any]:
        """Return the COCO result of a detection of `errors`."""
        return self.results[self.errors.detections.result[row]]

    def true_object(self, row: int) -> dict[str, Any]:
        """Return the annotation of an object of `errors`."""
        return self.ground_truth["annotations"][self.errors.objects.annotation[row]]

    def rows_of(self, kind: str) -> NDArray[np.int64]:
        """Return the indices of the detections of a kind that AP counts, of the objects for "missed"."""
        if ERROR_KINDS[kind] == MISSED_OBJECT:
            return np.flatnonzero(self.errors.objects.missed)
        found = self.errors.detections
        return np.flatnonzero((found.kind == ERROR_KINDS[kind]) & ~found.ignored)

    def class_counts(self, kind: str) -> NDArray[np.int64]:
        """Return the number of errors of a kind by class `(c,)`: of the detection, of the object for "missed"."""
        part = self.errors.objects if ERROR_KINDS[kind] == MISSED_OBJECT else self.errors.detections
        return np.bincount(part.label[self.rows_of(kind)], minlength=len(self.class_names))

    def as_json(self) -> dict[str, Any]:
        """Return all figures as plain values; AP and its rise are fractions."""
        costs, errors = self.costs, self.errors
        counts = {kind: self.class_counts(kind) for kind in ERROR_KINDS}
        objects, detections = (
            np.bincount(part.label, minlength=len(self.class_names)) for part in (errors.objects, errors.detections)
        )
        return {
            "AP50": costs.ap,
            "iou": self.kind,
            "images": len(self.ground_truth["images"]),
            "objects": int(objects.sum()),
            "detections": int(detections.sum()),
            "detections_ignored": int(errors.detections.ignored.sum()),
            "detections_left_out": errors.left_out,
            **{f"errors_{kind}": int(found.sum()) for kind, found in counts.items()},
            **{f"dAP_{kind}": value for kind, value in costs.kinds.items()},
            "dAP_false_positives": costs.false_positives,
            "dAP_false_negatives": costs.false_negatives,
            **{f"suspects_{suspicion}": len(found) for suspicion, found in self.suspects.items()},
            "per_class": {
                name: {
                    "AP50": float(costs.class_ap[label]),
                    "objects": int(objects[label]),
                    "detections": int(detections[label]),
                    **{f"errors_{kind}": int(found[label]) for kind, found in counts.items()},
                    **{f"dAP_{kind}": float(found[label]) for kind, found in costs.class_kinds.items()},
                }
                for label, name in enumerate(self.class_names)
            },
        }


def analyse_errors(
    ground_truth: dict[str, Any],
    results: list[dict[str, Any]],
    *,
    kind: str = "bbox",
    max_detections: int = MAX_DETECTIONS,
    suspect_score: float | None = None,
) -> ErrorAnalysis:
    """Find the errors of a detector, what each kind costs in AP, and the labels that they make suspect.

    Args:
        ground_truth: loaded COCO instances file.
        results: COCO results, see `coco_metrics`.
        kind: "bbox" for the IoU of boxes, "segm" for the IoU of masks.
        max_detections: see `find_errors`.
        suspect_score: see `confident_scores`.

    Raises:
        ValueError: see `coco_metrics`.
    """
    errors = find_errors(ground_truth, results, kind, max_detections=max_detections)
    sizes = {entry["id"]: declared_size(entry) for entry in ground_truth["images"]}
    boxed = [
        entry
        if entry.get("bbox")
        else entry | {"bbox": coco_mask.toBbox(to_rle(entry["segmentation"], image_size(entry, sizes))).tolist()}
        for entry in results
    ]
    names = class_keys(ground_truth, sorted(entry["id"] for entry in ground_truth["categories"]))
    suspects = find_suspects(errors, boxed, ground_truth, confident_scores(errors, suspect_score))
    return ErrorAnalysis(ground_truth, boxed, names, kind, errors, error_costs(errors), suspects)
