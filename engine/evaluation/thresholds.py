"""Precision, recall and F1 over the score, and the best score threshold of each class and of all classes."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .box_matches import BoxMatches

Floats = NDArray[np.float64]

# Thresholds from fewer objects are uncertain.
FEW_OBJECTS = 30
# F1 of all classes is a sum in floating point: smaller differences are none
_SAME_F1 = 1e-12


class ScoreCurve(NamedTuple):
    """Precision, recall and F1 of the detections with at least a score.

    Attributes:
        scores: `(n,)` the different scores, in descending order.
        precision: `(n,)` fraction of the detections that are correct.
        recall: `(n,)` fraction of the objects that are found, NaN without objects.
        f1: `(n,)` harmonic mean of both, NaN without objects.
        objects: number of objects.
    """

    scores: Floats
    precision: Floats
    recall: Floats
    f1: Floats
    objects: int

    def at(self, thresholds: Floats) -> tuple[Floats, Floats, Floats]:
        """Return precision, recall and F1 at other thresholds; where nothing is detected NaN, 0 and 0."""
        count = np.searchsorted(-self.scores, -np.asarray(thresholds), side="right")
        nothing = 0.0 if self.objects else math.nan
        starts = (math.nan, nothing, nothing)
        return tuple(np.concatenate([[start], values])[count] for start, values in zip(starts, self[1:4], strict=True))


def score_curve(scores: Floats, correct: NDArray[np.bool_], objects: int) -> ScoreCurve:
    """Return the curve of one class.

    Args:
        scores: `(n,)` scores of the detections.
        correct: `(n,)` whether each detection matches an object.
        objects: number of objects.
    """
    order = np.argsort(-scores, kind="stable")
    scores, found = scores[order], np.cumsum(correct[order])
    last = np.append(scores[1:] != scores[:-1], True)[: len(scores)]  # of equal scores
    scores, found, detected = scores[last], found[last], 1 + np.flatnonzero(last)
    recall, f1 = (found / objects, 2 * found / (detected + objects)) if objects else (np.full(len(found), np.nan),) * 2
    return ScoreCurve(scores, found / detected, recall, f1, objects)


def score_curves(matches: BoxMatches) -> dict[str, ScoreCurve]:
    """Return the curve of each class by its name. Matches with crowd regions do not count."""
    counted = ~matches.ignored
    order = np.flatnonzero(counted)[np.argsort(matches.classes[counted], kind="stable")]
    ends = np.cumsum(np.bincount(matches.classes[counted], minlength=len(matches.class_names)))
    parts = zip(matches.class_names, np.split(order, ends[:-1]), matches.objects.tolist(), strict=True)
    return {
        name: score_curve(matches.scores[part], matches.partners[part] >= 0, objects) for name, part, objects in parts
    }


def threshold_metrics(curves: Mapping[str, ScoreCurve]) -> dict[str, Any]:
    """Return the best score thresholds, and precision, recall and F1 there.

    The best threshold has the highest F1, and is the higher one of two with the same F1. For all classes, F1 is the
    mean over the classes with objects, as AP is.

    Args:
        curves: curve of each class by its name.

    Returns:
        `score_threshold`, the best threshold for all classes, with `precision`, `recall` and `F1`: means over the
        classes with objects, of precision over the classes with detections. The same for each class at its own best
        threshold as `per_class_score_threshold`, `per_class_precision` and so on; `per_class_objects` is the number of
        objects. Values are NaN for a class without objects or without a correct detection.
    """
    with_objects = [curve for curve in curves.values() if curve.objects]
    score = _best_for_all(with_objects)
    names = {"score_threshold": score} | dict.fromkeys(("precision", "recall", "F1"), math.nan)
    if not math.isnan(score):
        precision, recall, f1 = np.array([curve.at(np.array(score)) for curve in with_objects]).T
        means = np.nanmean(precision), recall.mean(), f1.mean()
        names |= dict(zip(("precision", "recall", "F1"), map(float, means), strict=True))
    best = {class_name: _best(curve) for class_name, curve in curves.items()}
    per_class = {
        f"per_class_{name}": {class_name: values[place] for class_name, values in best.items()}
        for place, name in enumerate(names)
    }
    return names | per_class | {"per_class_objects": {name: curve.objects for name, curve in curves.items()}}


def _best(curve: ScoreCurve) -> tuple[float, float, float, float]:
    """Return the best threshold of a class, and precision, recall and F1 there; NaN if no detection is correct."""
    if not np.nan_to_num(curve.f1).any():
        return (math.nan,) * 4
    place = int(curve.f1.argmax())  # the first, which has the highest score
    return tuple(float(values[place]) for values in curve[:4])


def _best_for_all(curves: list[ScoreCurve]) -> float:
    """Return the score with the highest mean of F1, NaN if no detection is correct."""
    scores = np.concatenate([[], *(curve.scores for curve in curves)])
    changes = np.concatenate([[], *(np.diff(curve.f1, prepend=0.0) for curve in curves)])
    if not changes.any():
        return math.nan
    order = np.argsort(-scores, kind="stable")
    scores, f1 = scores[order], np.cumsum(changes[order])
    last = np.append(scores[1:] != scores[:-1], True)
    scores, f1 = scores[last], f1[last]
    return float(scores[f1 >= f1.max() - _SAME_F1][0])
