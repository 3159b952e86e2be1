"""Numbers of a COCO file that betray another convention, such as boxes as fractions or as two corners.

One box cannot show that. A check compares all boxes of a file, and most of them must agree.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .coco_file import Problem, declared_size, is_box, is_number
from .objects import ROUNDING_PX
from .segmentation import extent_of_mask

# Minimum number of boxes for a conclusion from all boxes, and minimum fraction of the boxes.
_MANY = 10
_SOME = 5
_MOST = 0.95
# Number of masks that are compared with their boxes.
_SAMPLED_MASKS = 500
# Minimum IoU of an annotation's box and its mask's bounding box.
SAME_BOX = 0.5
# More than half of the numbers must be fractions, or of another place.
_HALF = 0.5
# Boxes in pixels reach farther; boxes of a smaller copy of the images, or in percent, do not. The second value is the
# probability that even places of the boxes lead to this by chance.
_UPPER_LEFT, _CHANCE = 0.8, 1e-5
_MAX_AREA_RATIO, _MIN_AREA_RATIO = 1.2, 0.01


class Conventions(NamedTuple):
    """The problems of `convention_problems`.

    Attributes:
        errors: Certain problems.
        warnings: Likely problems.
    """

    errors: list[Problem]
    warnings: list[Problem]


class _Boxes(NamedTuple):
    """Boxes except those of crowd regions, as columns `(n,)`; sides of images are infinite if they are unknown."""

    annotations: list[dict[str, Any]]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    w: NDArray[np.float64]
    h: NDArray[np.float64]
    width: NDArray[np.float64]
    height: NDArray[np.float64]

    def name(self, which: NDArray[np.bool_]) -> list[str]:
        """Return the selected boxes as text."""
        chosen = (self.annotations[index] for index in np.flatnonzero(which))
        return [f"annotation {a['file_id']} in image {a['image_id']}: {a['bbox']}" for a in chosen]


def convention_problems(raw: dict[str, Any], *, masks: bool) -> Conventions:
    """Search a completed COCO file for numbers of other conventions.

    Args:
        raw: Content after `complete`.
        masks: Whether training needs masks. If not, problems of masks are warnings.
    """
    boxes = _collect(raw)
    found = Conventions([], [])
    if len(boxes.x):
        fractions, all_are = _fractions(boxes)
        if fractions is not None:
            found[0 if all_are else 1].append(fractions)
        else:
            found.warnings.extend(_other_layouts(boxes))
            found.warnings.extend(_upper_left(boxes))
        found.warnings.extend(_other_areas(boxes))
    for problem, is_certain in _other_masks(raw):
        found[0 if is_certain and masks else 1].append(problem)
    scored = [f"annotation {a['file_id']} in image {a['image_id']}" for a in raw["annotations"] if "score" in a]
    if scored:
        found.warnings.append(Problem("annotations with a score, as detections have and ground truth has not", scored))
    return found


def _collect(raw: dict[str, Any]) -> _Boxes:
    sizes = {entry["id"]: declared_size(entry) or (np.inf, np.inf) for entry in raw["images"]}
    annotations = [a for a in raw["annotations"] if not a["iscrowd"] and is_box(a.get("bbox"))]
    columns = np.array([a["bbox"] for a in annotations], dtype=np.float64).reshape(-1, 4).T
    sides = np.array([sizes[a["image_id"]] for a in annotations], dtype=np.float64).reshape(-1, 2).T
    return _Boxes(annotations, *columns, *sides)


def _fractions(boxes: _Boxes) -> tuple[Problem | None, bool]:
    """Return the problem of boxes as fractions of the image, and whether all boxes are."""
    values = np.stack(boxes[1:5])
    inside = (values.min(axis=0) >= 0) & (values.max(axis=0) <= 1) & (np.minimum(boxes.width, boxes.height) > 2)
    if inside.all() or (inside.sum() >= _MANY and inside.mean() >= _HALF):
        what = "boxes with all numbers from 0 to 1, which seem to be fractions of the image instead of pixels"
        hint = f" of {len(inside)} boxes; multiply x and width by the image width, y and height by the image height"
        return Problem(what, boxes.name(inside), hint), bool(inside.all())
    return None, False


def _other_layouts(boxes: _Boxes) -> Iterator[Problem]:
    """Yield the layout other than (x, y, width, height) that fits the boxes better."""
    _, x, y, w, h, width, height = boxes
    right, bottom = width - x - w, height - y - h
    outside = (right < -ROUNDING_PX) | (bottom < -ROUNDING_PX)
    longest = np.maximum(width, height) + ROUNDING_PX  # corners may be (y1, x1, y2, x2) too
    corners = (w > x) & (h > y) & (w <= longest) & (h <= longest)
    hint = f" of {len(x)} boxes; COCO boxes are (x, y, width, height) in pixels"
    # large objects in the middle of all images have such numbers too, but equal margins on both sides
    centred = not outside.any() and all(
        np.isfinite(after).all() and 0.5 <= (before.mean() + 1) / (after.mean() + 1) <= 2
        for before, after in ((x, right), (y, bottom))
    )
    is_clear = corners.mean() >= _MOST and not centred
    if is_clear and (len(x) >= _MANY or (len(x) >= _SOME and outside.any())):
        what = "boxes whose width exceeds x and whose height exceeds y, which seem to be corners (x1, y1, x2, y2)"
        yield Problem(what, boxes.name(corners), hint)
        return
    # no box reaches over the left or upper side by this reading, but boxes of the other reading do at the other sides
    before = (x < w / 2).sum() + (y < h / 2).sum()
    after = (right < w / 2).sum() + (bottom < h / 2).sum()
    if len(x) >= _SOME and after >= _SOME and before * 20 <= after and (right >= -ROUNDING_PX - w / 2).all():
        what = "boxes that seem to be (center x, center y, width, height), since they keep away from the upper left"
        yield Problem(what, boxes.name((right < w / 2) | (bottom < h / 2)), hint)
        return
    swapped = (x + w <= height + ROUNDING_PX) & (y + h <= width + ROUNDING_PX)
    if outside.sum() >= _SOME and swapped.all():
        what = "boxes outside of their image, which fit if the width and height of the images, or x and y, are swapped"
        yield Problem(what, boxes.name(outside), f" of {len(x)} boxes")


def _upper_left(boxes: _Boxes) -> Iterator[Problem]:
    """Yield the problem of boxes that all are in the upper left part of their images, as in percent."""
    _, x, y, w, h, width, height = boxes
    if not np.isfinite(np.concatenate([width, height])).all() or len(x) < _SOME:
        return
    most = 1 if len(x) < 4 * _MANY else _MOST
    spans = [((x / width), (x + w) / width), (y / height, (y + h) / height)]
    ends = [np.quantile(end, most) for _, end in spans]
    # objects in the middle of all images leave as much space at the upper left
    is_lopsided = all(
        end <= _UPPER_LEFT and np.quantile(start, 1 - most) <= (1 - end) / 2
        for (start, _), end in zip(spans, ends, strict=True)
    )
    if is_lopsided and np.prod(ends) ** len(x) < _CHANCE:
        largest = float(np.max([x + w, y + h]))
        unit = "percent" if largest <= 101 else "thousandths" if 500 < largest <= 1000 else "pixels of smaller images"
        what = f"boxes that all end in the upper left of their images, which seem to be in {unit}"
        is_near = (spans[0][1] <= _UPPER_LEFT) & (spans[1][1] <= _UPPER_LEFT)
        yield Problem(what, boxes.name(is_near), f" of {len(x)} boxes; COCO boxes are in pixels of the image file")


def _other_areas(boxes: _Boxes) -> Iterator[Problem]:
    areas = np.array([a["area"] if is_number(a.get("area")) else np.nan for a in boxes.annotations], dtype=np.float64)
    sizes = np.abs(boxes.w * boxes.h)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = areas / sizes
    wrong = (ratio > _MAX_AREA_RATIO) | (ratio < _MIN_AREA_RATIO)
    if wrong.sum() >= _SOME and wrong.mean() >= _MOST:
        what = "areas that are larger or much smaller than the box, which seem to be in another unit"
        found = [f"annotation {a['file_id']} in image {a['image_id']}: area {a['area']}" for a in boxes.annotations]
        yield Problem(what, found, "; COCO areas are in square pixels and select objects for APs, APm and APl")


def overlap(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the IoU of pairs of boxes (x, y, width, height), each `(n, 4)`."""
    low = np.maximum(one[:, :2], other[:, :2])
    high = np.minimum(one[:, :2] + one[:, 2:], other[:, :2] + other[:, 2:])
    both = np.prod(np.maximum(high - low, 0), axis=1)
    union = np.prod(one[:, 2:], axis=1) + np.prod(other[:, 2:], axis=1) - both
    return np.divide(both, union, out=np.zeros_like(both), where=union > 0)


def _other_masks(raw: dict[str, Any]) -> Iterator[tuple[Problem, bool]]:
    """Yield the problem of masks that do not match the boxes, and whether it is certain, from a sample."""
    sizes = {entry["id"]: declared_size(entry) for entry in raw["images"]}
    masked = [a for a in raw["annotations"] if a.get("segmentation") and is_box(a.get("bbox"))]
    step = max(len(masked) // _SAMPLED_MASKS, 1)
    extents = [(a, extent_of_mask(a["segmentation"], sizes[a["image_id"]])) for a in masked[::step]]
    known = [(a, extent) for a, extent in extents if extent is not None]
    if not known:
        return
    masks = np.array([extent for _, extent in known])
    boxes = np.array([a["bbox"] for a, _ in known], dtype=np.float64)
    is_polygon = np.array([isinstance(a["segmentation"], list) for a, _ in known])
    fractions = is_polygon & (masks.min(axis=1) >= 0) & (masks[:, :2] + masks[:, 2:] <= 1).all(axis=1)
    fractions &= boxes[:, 2:].max(axis=1) > 2
    names = np.array([f"annotation {a['file_id']} in image {a['image_id']}" for a, _ in known])
    hint = f" of {len(known)} masks"
    if fractions.all() or (fractions.sum() >= _MANY and fractions.mean() >= _HALF):
        what = "polygons with all numbers from 0 to 1, which seem to be fractions of the image instead of pixels"
        yield Problem(what, names[fractions].tolist(), hint), bool(fractions.all())
        return
    apart = overlap(masks, boxes) < SAME_BOX
    if apart.sum() >= _SOME and apart.mean() >= _HALF:
        what = "masks of another place or scale than their boxes"
        yield Problem(what, names[apart].tolist(), hint), False
