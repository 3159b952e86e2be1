"""COCO metrics: names, meanings and format."""

from typing import Any

from ..display import percent

# The 12 metrics in the order of COCOeval.stats; AP is over IoU 0.50:0.95 unless the name has a threshold
COCO_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
METRIC_MEANINGS = {
    "AP": "IoU 0.50:0.95",
    "AP50": "IoU 0.50",
    "AP75": "IoU 0.75",
    "APs": "small, area < 32^2",
    "APm": "medium",
    "APl": "large, area > 96^2",
    "AR1": "1 detection per image",
    "AR10": "10 detections per image",
    "AR100": "100 detections per image",
    "ARs": "small",
    "ARm": "medium",
    "ARl": "large",
}
# Number of detections of a class that COCO counts in an image
MAX_DETECTIONS = 100
# Prefix of the metrics of masks; metrics of boxes have no prefix
MASK_PREFIX = "mask_"


def metric_meanings(metrics: dict[str, Any]) -> dict[str, str]:
    """Return the names of the scalar metrics of boxes with their meanings, in the order of a table."""
    most = metrics.get("max_detections", MAX_DETECTIONS)
    more = {} if most == MAX_DETECTIONS else {f"AR{most}": f"{most} detections per image"}
    names = [*COCO_METRICS]
    names[names.index("ARs") : names.index("ARs")] = more
    return {name: (METRIC_MEANINGS | more)[name] for name in names}


def scalar_metrics(metrics: dict[str, Any]) -> dict[str, float]:
    """Return the metrics of `coco_metrics` that are one number, without those per class."""
    return {name: value for name, value in metrics.items() if not isinstance(value, dict)}


def describe_metrics(metrics: dict[str, Any]) -> str:
    """Format the main metrics x100, for example "AP 37.4, AP50 58.1, AP75 40.4, mask AP 34.7"."""
    names = [*COCO_METRICS[:3], *([f"{MASK_PREFIX}AP"] if f"{MASK_PREFIX}AP" in metrics else [])]
    most = metrics.get("max_detections", MAX_DETECTIONS)
    limit = "" if most == MAX_DETECTIONS else f" (up to {most} detections of a class per image)"
    return ", ".join(f"{name.replace('_', ' ')} {percent(metrics[name])}" for name in names) + limit
