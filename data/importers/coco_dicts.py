"""Imported labels as COCO data sets, one per split; every object is checked here, for all formats."""

import math
import os
from itertools import count
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from ..coco_file import MAX_PX, structure_problems
from ..objects import ROUNDING_PX
from ..segmentation import extent_of_mask, segmentation_problem, to_rle
from .findings import Findings
from .records import LabelledImage, LabelledObject, Labels

# COCO's own files have two decimals.
_DECIMALS = 2
# As data/objects.py: a smaller side can vanish in float32.
_MIN_PX = 0.01


def image_root(labels: Labels) -> Path:
    """Return the folder that contains all images of all splits, of which there must be one."""
    return Path(os.path.commonpath({image.path.parent for images in labels.splits.values() for image in images}))


def coco_datasets(labels: Labels, root: Path, found: Findings) -> dict[str, dict[str, Any]]:
    """Return a COCO data set for each split. Ids of images and annotations are unique over all splits.

    Args:
        labels: Content of the data set.
        root: Folder to which `file_name` is relative.
        found: Receives the objects that are wrong, which the result does not have.
    """
    categories = [{"id": key, "name": name} for name, key in labels.category_ids.items()]
    image_ids, annotation_ids = count(1), count(1)
    result = {}
    for split, images in labels.splits.items():
        raw: dict[str, Any] = {"images": [], "annotations": [], "categories": categories}
        for image in images:
            width, height = image.size
            entry = {"id": next(image_ids), "file_name": image.path.relative_to(root).as_posix()}
            raw["images"].append(entry | {"width": width, "height": height})
            for annotation in filter(None, (annotation_of(item, image, found) for item in image.objects)):
                category = labels.category_ids[annotation.pop("name")]
                ids = {"id": next(annotation_ids), "image_id": entry["id"], "category_id": category}
                raw["annotations"].append(ids | annotation)
        for problem in structure_problems(raw):  # such as names with half a character
            for entry in problem.found:
                found.error(problem.what, f"{split}: {entry}")
        result[split] = raw
    return result


def annotation_of(item: LabelledObject, image: LabelledImage, found: Findings) -> dict[str, Any] | None:
    """Return an object as a COCO annotation with its class name; None after an error."""
    segmentation = item.segmentation
    if segmentation:
        if problem := segmentation_problem(segmentation, image.size):
            found.error("objects whose outline is not valid", f"{item.place}: {problem}")
            return None
        if isinstance(segmentation, list):
            segmentation = [[_rounded(value) for value in polygon] for polygon in segmentation]
    bbox = item.bbox if item.bbox is not None else extent_of_mask(segmentation, image.size)
    bbox = bbox and [_rounded(value) for value in bbox]
    if problem := _box_problem(bbox, image.size):
        found.error("boxes that are not valid (x, y, width, height in pixels)", f"{item.place}: {problem}")
        return None
    area = item.area
    if area is None:
        area = _rounded(_area_of(segmentation, image.size) if segmentation else bbox[2] * bbox[3])
    annotation = {"name": item.name, "bbox": bbox, "area": area, "iscrowd": item.iscrowd}
    return annotation | ({"segmentation": segmentation} if segmentation else {})


def _box_problem(bbox: list[float] | None, size: tuple[int, int]) -> str | None:
    if bbox is None or not all(math.isfinite(value) and abs(value) < MAX_PX for value in bbox):
        return f"must be four finite numbers below {MAX_PX:g}, got {bbox}"
    x, y, w, h = bbox
    if min(w, h) <= _MIN_PX:
        return f"must have a width and height above 0, got {bbox}"
    if min(x, y) < -ROUNDING_PX or x + w > size[0] + ROUNDING_PX or y + h > size[1] + ROUNDING_PX:
        return f"must be inside of its image of {size[0]}x{size[1]}, got {bbox}"
    return None


def _rounded(value: float) -> float:
    if not math.isfinite(value):
        return value
    rounded = round(value, _DECIMALS)
    return int(rounded) if rounded == int(rounded) else rounded


def _area_of(segmentation: list[list[float]] | dict[str, Any], size: tuple[int, int]) -> float:
    """Return the sum of the areas of polygons by the shoelace formula, as COCO's files have it, or that of a mask."""
    if isinstance(segmentation, dict):
        return float(coco_mask.area(to_rle(segmentation, size)))
    return sum(abs(_shoelace(polygon)) for polygon in segmentation)


def _shoelace(polygon: list[float]) -> float:
    xs, ys = polygon[::2], polygon[1::2]
    return sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs))) / 2
