"""Checks of the boxes and masks in a COCO annotation file."""

import math
from typing import Any, NamedTuple

from .coco_file import Problem, declared_size, is_box
from .segmentation import segmentation_problem
from .shown import shown

INVALID_BOX_POLICIES = ("raise", "clip", "drop", "keep")
INVALID_MASK_POLICIES = ("raise", "drop")
# Annotation tools round; a box that extends less out of its image is clipped without a warning.
ROUNDING_PX = 1
# Smaller sides may vanish in float32, and the detectors do not accept boxes without a size.
_MIN_PX = 0.01
_OUTSIDE = "is not inside of its image"


class TrainingAnnotation(NamedTuple):
    """An annotation of the file that is used in training, and its box (x, y, width, height) clipped to the image."""

    annotation: dict[str, Any]
    bbox: list[float]


class Objects(NamedTuple):
    """The result of `check_boxes`.

    Attributes:
        training: Training annotations, in the order of the images.
        ignored: Crowd regions, whose boxes are not background in training.
        annotations: Annotations for evaluation, crowd regions included. Boxes that are not invalid remain as they are.
        invalid: Problem of invalid boxes.
        outside: Problem of boxes outside of their image that the policy "keep" keeps.
        boxless_crowds: Problem of crowd regions without a readable box, which are left out.
    """

    training: list[TrainingAnnotation]
    ignored: list[TrainingAnnotation]
    annotations: list[dict[str, Any]]
    invalid: Problem
    outside: Problem
    boxless_crowds: Problem


def check_boxes(raw: dict[str, Any], policy: str) -> Objects:
    """Check the boxes of a completed file by a policy, in training and evaluation, see `load_annotations`."""
    sizes = {entry["id"]: declared_size(entry) for entry in raw["images"]}
    training, ignored, kept, invalid, outside, boxless = [], [], [], [], [], []
    for annotation in raw["annotations"]:
        bbox = annotation.get("bbox")
        if annotation["iscrowd"]:
            if is_box(bbox):
                kept.append(annotation)
                if inside := _clip(bbox, sizes[annotation["image_id"]]):
                    ignored.append(TrainingAnnotation(annotation, inside))
            else:
                boxless.append(f"annotation {annotation['file_id']} in image {annotation['image_id']}: {shown(bbox)}")
            continue
        size = sizes[annotation["image_id"]]
        inside = _clip(bbox, size) if is_box(bbox) else None
        problem = _problem(bbox, inside, size)
        if problem:
            name = f"annotation {annotation['file_id']} in image {annotation['image_id']}"
            is_kept = policy == "keep" and problem.startswith(_OUTSIDE)
            (outside if is_kept else invalid).append(f"{name}: {shown(bbox)} {problem}")
            if is_kept:
                kept.append(annotation)
            elif inside and policy == "clip":
                annotation = annotation | {"bbox": inside}
                training.append(TrainingAnnotation(annotation, inside))
                kept.append(annotation)
        else:
            training.append(TrainingAnnotation(annotation, inside))
            kept.append(annotation)
    order = {image_id: index for index, image_id in enumerate(sizes)}
    training.sort(key=lambda found: order[found.annotation["image_id"]])
    hint = "; fix them" if policy == "keep" else "; fix them, or set data.invalid_annotations to clip or drop"
    return Objects(
        training,
        ignored,
        kept,
        Problem("invalid boxes (x, y, width, height)", invalid, hint),
        Problem("boxes that are not inside of their image", outside),
        Problem("crowd regions without a readable box, which are left out", boxless),
    )


def with_masks(raw: dict[str, Any]) -> tuple[dict[str, Any], Problem]:
    """Return the data without annotations whose mask is missing or invalid, and the problem that lists them."""
    sizes = {entry["id"]: declared_size(entry) for entry in raw["images"]}
    kept, wrong = [], []
    for annotation in raw["annotations"]:
        problem = segmentation_problem(annotation.get("segmentation"), sizes[annotation["image_id"]])
        if problem is None:
            kept.append(annotation)
        else:
            wrong.append(f"annotation {annotation['file_id']} in image {annotation['image_id']} {problem}")
    hint = "; fix them, or set data.invalid_annotations to clip or drop to skip them"
    return raw | {"annotations": kept}, Problem("annotations without a valid mask", wrong, hint)


def _clip(bbox: list[float], size: tuple[int, int] | None) -> list[float] | None:
    """Clip a box (x, y, width, height) to its image; return None if no area remains."""
    x, y, w, h = bbox
    width, height = size or (math.inf, math.inf)
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    return [left, top, right - left, bottom - top] if min(right - left, bottom - top) > _MIN_PX else None


def _problem(bbox: Any, inside: list[float] | None, size: tuple[int, int] | None) -> str | None:
    if not is_box(bbox):
        return "is not a list of four numbers in pixels"
    x, y, w, h = bbox
    if min(w, h) <= _MIN_PX:
        return "must have a width and height above 0"
    width, height = size or (math.inf, math.inf)
    if inside is None or min(x, y) < -ROUNDING_PX or x + w > width + ROUNDING_PX or y + h > height + ROUNDING_PX:
        return f"{_OUTSIDE} of {width}x{height}"
    return None
