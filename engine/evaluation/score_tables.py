"""Best score thresholds and confusions as text for the terminal and the log."""

import math
from collections.abc import Mapping
from typing import Any

from ..display import counted, format_table, percent
from .confusion import Confusion
from .metrics import MASK_PREFIX
from .thresholds import FEW_OBJECTS

# Rows of a table, and confusions that are named
MOST_CLASSES, MOST_CONFUSIONS = 100, 5
_FIGURES = ("precision", "recall", "F1")


def class_table(metrics: Mapping[str, Any], most: int = MOST_CLASSES) -> str:
    """Return a table of AP, the best score threshold, and precision, recall and F1 there, with notes.

    Args:
        metrics: metrics of `coco_metrics` and `score_report`.
        most: maximum number of classes.
    """
    kinds = {"": "box AP", MASK_PREFIX: "mask AP"} if f"{MASK_PREFIX}AP" in metrics else {"": "AP"}
    objects = metrics["per_class_objects"]
    few = [name for name, count in objects.items() if count < FEW_OBJECTS and has_threshold(metrics, name)]
    rows = [
        (
            name,
            objects[name],
            *(percent(metrics[f"{kind}per_class"][name]) for kind in kinds),
            _score(metrics["per_class_score_threshold"][name]) + ("?" if name in few else ""),
            *(percent(metrics[f"per_class_{figure}"][name]) for figure in _FIGURES),
        )
        for name in [*objects][:most]
    ]
    every = ("all classes", sum(objects.values()), *(percent(metrics[f"{kind}AP"]) for kind in kinds))
    rows.append((*every, _score(metrics["score_threshold"]), *(percent(metrics[figure]) for figure in _FIGURES)))
    lines = [format_table(("class", "objects", *kinds.values(), "best threshold", *_FIGURES), rows)]
    if len(objects) > most:
        lines.append(f"  ... and {len(objects) - most} more classes")
    lines.append(
        "AP to F1 are x100. The best threshold is the score with the highest F1 at IoU 0.50.\n"
        "It was chosen on these images: F1 is lower on others."
    )
    if few:
        lines.append(
            f"?: uncertain, because the class has fewer than {FEW_OBJECTS} objects here ({counted(len(few), 'class')})."
        )
    return "\n".join(lines)


def has_threshold(metrics: Mapping[str, Any], class_name: str) -> bool:
    """Whether a class has its own best threshold."""
    return not math.isnan(metrics["per_class_score_threshold"][class_name])


def describe_confusion(confusion: Confusion) -> str:
    """Describe the matches at the best thresholds in a few lines."""
    correct = int(confusion.matrix.diagonal().sum())
    wrong = int(confusion.matrix.sum()) - correct
    missed = int(confusion.missed.sum())
    kinds = {
        "duplicates": confusion.duplicates,
        "badly placed": confusion.badly_placed,
        "false alarms": confusion.false_alarms,
    }
    others = {name: int(counts.sum()) for name, counts in kinds.items()}
    total, objects = sum(others.values()), correct + wrong + missed
    lines = [
        f"objects at these thresholds: {correct:,} of {objects:,} detected, {wrong:,} detected as another class, "
        f"{missed:,} missed",
        f"other detections: {total:,} ({', '.join(f'{count:,} {name}' for name, count in others.items())})",
    ]
    if confusions := confusion.largest():
        named = [f"{true} as {found} {count:,}" for true, found, count in confusions[:MOST_CONFUSIONS]]
        more = [f"... and {len(confusions) - len(named)} more"] if len(confusions) > len(named) else []
        lines.append(f"most frequent confusions: {', '.join([*named, *more])}")
    return "\n".join([*lines, _describe_empty(confusion)])


def _describe_empty(confusion: Confusion) -> str:
    figures = confusion.metrics()
    count = figures["empty_images"]
    if not count:
        return "images without objects: none, so the false alarms on such images are unknown"
    fraction, per_image = figures["empty_images_with_detections_frac"], figures["empty_detections_per_image"]
    return (
        f"images without objects: {count:,}, of which {percent(fraction)} % have a detection; {per_image:.2f} "
        "detections for each of them"
    )


def _score(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
