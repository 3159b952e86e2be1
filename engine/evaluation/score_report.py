"""Report of a detector at its best score thresholds: metrics, curves and confusion matrix."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .box_matches import match_boxes
from .confusion import Confusion, count_confusion
from .metrics import MAX_DETECTIONS
from .thresholds import ScoreCurve, score_curves, threshold_metrics


@dataclass(frozen=True)
class ScoreReport:
    """Result of `score_report`.

    Attributes:
        metrics: metrics of `threshold_metrics` and `Confusion.metrics`.
        curves: precision, recall and F1 over the score, by class name.
        confusion: matches at the best thresholds.
    """

    metrics: dict[str, Any]
    curves: dict[str, ScoreCurve]
    confusion: Confusion


def score_report(
    ground_truth: dict[str, Any], results: Sequence[dict[str, Any]], *, max_detections: int = MAX_DETECTIONS
) -> ScoreReport:
    """Find the best score thresholds of detected boxes, and count the errors there; see `match_boxes`."""
    matches = match_boxes(ground_truth, results, max_detections=max_detections)
    curves = score_curves(matches)
    metrics = threshold_metrics(curves)
    confusion = count_confusion(matches, metrics)
    return ScoreReport(metrics | confusion.metrics(), curves, confusion)
