"""The cost of each kind of errors in AP, as TIDE defines it (https://arxiv.org/abs/2008.08115)."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .tide import CLASS, CORRECT, ERROR_KINDS, LOCALIZATION, MISSED_OBJECT, Errors

_RECALLS = np.arange(101) / 100


class ErrorCosts(NamedTuple):
    """AP at IoU 0.5, and how much it rises if errors are fixed. All values are fractions.

    Attributes:
        ap: mean over the classes that have objects.
        kinds: rise of AP by name, if all errors of this kind alone are fixed; at least 0.
        false_positives: rise of AP without any detection that is not correct.
        false_negatives: rise of AP if all objects without a correct detection are left out.
        class_ap: `(c,)` AP of each class, NaN without objects.
        class_kinds: `(c,)` rise of AP of each class by name, NaN without objects. It may be below 0.
    """

    ap: float
    kinds: dict[str, float]
    false_positives: float
    false_negatives: float
    class_ap: NDArray[np.float64]
    class_kinds: dict[str, NDArray[np.float64]]


def error_costs(errors: Errors) -> ErrorCosts:
    """Compute AP again with the errors of each kind fixed.

    Fixes, as in TIDE:

    - "class": of the errors that belong to an object without a correct detection, the one with the highest score gets
      the class of the object and is correct. All other errors are left out.
    - "localization": the same, in the class of the detection.
    - "duplicate", "background", "both": the detections are left out.
    - "missed": the objects are left out.

    Note: unlike in TIDE, detections of a class without objects do not lower the mean, as in COCO's AP. Detections with
    equal scores keep their order in all computations.
    """
    found, objects = errors.detections, errors.objects
    positives = np.bincount(objects.label, minlength=errors.num_classes)
    has_objects = positives > 0

    def ap(keep: NDArray, correct: NDArray, labels: NDArray = found.label, lost: NDArray | None = None) -> NDArray:
        left = positives if lost is None else positives - np.bincount(objects.label[lost], minlength=len(positives))
        values = average_precisions(labels[keep], found.score[keep], correct[keep], left)
        return np.where(has_objects, values, np.nan)

    is_correct = found.kind == CORRECT
    counted = ~found.ignored
    unfound = objects.matched < 0
    base = ap(counted, is_correct)
    fixed = np.zeros(len(found.kind), dtype=bool)
    fixed[objects.fixed_by[objects.fixed_by >= 0]] = True
    after = {}
    for name, code in ERROR_KINDS.items():
        of_kind = found.kind == code
        repaired = of_kind & fixed if code in (CLASS, LOCALIZATION) else np.zeros_like(of_kind)
        labels = found.label.copy()
        labels[repaired] = objects.label[found.truth[repaired]]
        keep = (counted & ~of_kind) | repaired
        after[name] = ap(keep, is_correct | repaired, labels, objects.missed if code == MISSED_OBJECT else None)
    ap_before = _mean(base)
    return ErrorCosts(
        ap=ap_before,
        kinds={name: max(_mean(values) - ap_before, 0.0) for name, values in after.items()},
        false_positives=_mean(ap(is_correct, is_correct)) - ap_before,
        false_negatives=_mean(ap(counted, is_correct, lost=unfound)) - ap_before,
        class_ap=base,
        class_kinds={name: np.nan_to_num(values) - base for name, values in after.items()},
    )


def average_precisions(
    labels: NDArray[np.int64], scores: NDArray[np.float64], correct: NDArray[np.bool_], positives: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Compute AP of each class as the mean of the precision at 101 recalls.

    Args:
        labels: `(n,)` class of each detection.
        scores: `(n,)`; detections with equal scores keep their order.
        correct: `(n,)`.
        positives: `(c,)` number of objects of each class.

    Returns:
        `(c,)` fractions. 0 for a class with detections and without objects, NaN without both.
    """
    order = np.lexsort((-scores, labels))
    correct = correct[order]
    bounds = np.searchsorted(labels[order], np.arange(len(positives) + 1))
    values = np.full(len(positives), np.nan)
    for label, total in enumerate(positives):
        hits = np.cumsum(correct[bounds[label] : bounds[label + 1]])
        if not total:
            if len(hits):
                values[label] = 0.0
            continue
        precision = hits / np.arange(1, len(hits) + 1)
        precision = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
        values[label] = precision[np.searchsorted(hits / total, _RECALLS, side="left")].mean()
    return values


def _mean(values: NDArray[np.float64]) -> float:
    """Return the mean of the values that exist, NaN without any."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")
