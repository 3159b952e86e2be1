"""Checking the boxes and masks of a COCO annotation file."""

import math
from typing import Any, NamedTuple

from .coco_file import Problem, declared_size, is_box
from .segmentation import segmentation_problem

INVALID_BOX_POLICIES = ("raise", "clip", "drop")
INVALID_MASK_POLICIES = ("raise", "drop")
# Annotation tools round; a box that is outside by less is cut to the image without a word.
ROUNDING_PX = 1
# Smaller sides may vanish in float32, and the detectors take no box without a size.
_MIN_PX = 0.01


class TrainingAnnotation(NamedTuple):
    """An annotation to learn from, as the file has it, and its box (x, y, width, height) inside the image."""

    annotation: dict[str, Any]
    bbox: list[float]


def training_annotations(raw: dict[str, Any], policy: str) -> tuple[list[TrainingAnnotation], Problem]:
    """Find the boxes to learn from, in the order of the images, and those that are invalid."""
    sizes = {entry["id"]: declared_size(entry) for entry in raw["images"]}
    training, invalid = [], []
    for annotation in raw["annotations"]:
        if annotation["iscrowd"]:
            continue
        bbox, size = annotation.get("bbox"), sizes[annotation["image_id"]]
        inside = _clip(bbox, size) if is_box(bbox) else None
        problem = _problem(bbox, inside, size)
        if problem:
            invalid.append(f"annotation {annotation['file_id']} in image {annotation['image_id']}: {bbox!r} {problem}")
        if inside and (not problem or policy == "clip"):
            training.append(TrainingAnnotation(annotation, inside))
    order = {image_id: place for place, image_id in enumerate(sizes)}
    training.sort(key=lambda found: order[found.annotation["image_id"]])
    hint = "; mend them, or set data.invalid_annotations to clip or drop"
    return training, Problem("invalid boxes (x, y, width, height)", invalid, hint)


def with_boxes(raw: dict[str, Any]) -> dict[str, Any]:
    """Leave out annotations that have no box to judge by."""
    return raw | {"annotations": [annotation for annotation in raw["annotations"] if is_box(annotation.get("bbox"))]}


def with_masks(raw: dict[str, Any]) -> tuple[dict[str, Any], Problem]:
    """Leave out annotations without a mask that can be read, and say which they are."""
    sizes = {entry["id"]: declared_size(entry) for entry in raw["images"]}
    kept, wrong = [], []
    for annotation in raw["annotations"]:
        problem = segmentation_problem(annotation.get("segmentation"), sizes[annotation["image_id"]])
        if problem is None:
            kept.append(annotation)
        else:
            wrong.append(f"annotation {annotation['file_id']} in image {annotation['image_id']} {problem}")
    hint = "; mend them, or set data.invalid_annotations to clip or drop to leave them out"
    return raw | {"annotations": kept}, Problem("annotations without a mask that can be read", wrong, hint)


def _clip(bbox: list[float], size: tuple[int, int] | None) -> list[float] | None:
    """Cut a box (x, y, width, height) to its image; None when nothing is left."""
    x, y, w, h = bbox
    width, height = size or (math.inf, math.inf)
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    return [left, top, right - left, bottom - top] if min(right - left, bottom - top) > _MIN_PX else None


def _problem(bbox: Any, inside: list[float] | None, size: tuple[int, int] | None) -> str | None:
    if not is_box(bbox):
        return "is no list of four numbers of pixels"
    x, y, w, h = bbox
    if min(w, h) <= _MIN_PX:
        return "has no size"
    width, height = size or (math.inf, math.inf)
    if inside is None or min(x, y) < -ROUNDING_PX or x + w > width + ROUNDING_PX or y + h > height + ROUNDING_PX:
        return f"is not inside its image of {width}x{height}"
    return None
