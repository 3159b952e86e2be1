"""The figures of COCO: their names, what they mean, and how they are shown."""

from typing import Any

from ..display import percent

# The 12 figures of COCO in the order of COCOeval.stats, AP over IoU 0.50:0.95 unless named
COCO_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
METRIC_MEANINGS = {
    "AP": "IoU 0.50:0.95",
    "AP50": "IoU 0.50",
    "AP75": "IoU 0.75",
    "APs": "small, area < 32^2",
    "APm": "medium",
    "APl": "large, area > 96^2",
    "AR1": "1 detection an image",
    "AR10": "10 detections an image",
    "AR100": "100 detections an image",
    "ARs": "small",
    "ARm": "medium",
    "ARl": "large",
}
# Before the names of figures that masks are judged by; those of boxes stand alone
MASK_PREFIX = "mask_"


def scalar_metrics(figures: dict[str, Any]) -> dict[str, float]:
    """The figures of `coco_metrics` that are one number, without those by class."""
    return {name: value for name, value in figures.items() if not isinstance(value, dict)}


def describe_metrics(figures: dict[str, Any]) -> str:
    """The main figures in words, x100, as in "AP 37.4, AP50 58.1, AP75 40.4, mask AP 34.7"."""
    names = [*COCO_METRICS[:3], *([f"{MASK_PREFIX}AP"] if f"{MASK_PREFIX}AP" in figures else [])]
    return ", ".join(f"{name.replace('_', ' ')} {percent(figures[name])}" for name in names)
