"""LabelMe: a JSON file per image, with polygons, rectangles and circles in pixels.

Format: https://github.com/wkentaro/labelme
"""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..coco_file import is_number
from ..json_file import JsonError, read_json
from ..shown import shown
from .findings import Findings
from .folder import ImageIndex, LabelFolder, split_of_folder
from .records import LabelledImage, LabelledObject, Labels, sorted_classes
from .shapes import Points, ellipse, join_groups, within

_WRONG = "shapes of LabelMe files that are not valid"
# LabelMe's own names for pixels outside of objects.
_NO_OBJECTS = ("__ignore__", "_background_")
_READ = ("polygon", "rectangle", "circle", "rotation")


def is_labelme(value: Any) -> bool:
    """Return whether the content of a JSON file is of LabelMe."""
    return isinstance(value, dict) and isinstance(value.get("shapes"), list) and "imagePath" in value


def read_labelme(
    folder: LabelFolder, images: ImageIndex, found: Findings, progress: Callable[[Iterable], Iterable]
) -> Labels:
    """Read a data set of LabelMe files. Shapes of a class with the same group are one object."""
    splits: dict[str, list[LabelledImage]] = {}
    for path in progress(folder.with_suffix(".json")):
        image = _read_file(path, folder, images, found)
        if image and images.claim(image.path, folder.name(path), found):
            split = split_of_folder(path.relative_to(folder.root)) or "train"
            splits.setdefault(split, []).append(image)
    images.leave_out_others(found)
    return Labels(splits, sorted_classes(splits))


def _read_file(path: Path, folder: LabelFolder, images: ImageIndex, found: Findings) -> LabelledImage | None:
    place = folder.name(path)
    try:
        value = read_json(path)
    except JsonError as error:
        found.error("files that are not valid JSON", str(error))
        return None
    if not is_labelme(value):
        found.leave_out("JSON files without shapes and imagePath", place)
        return None
    name = value["imagePath"] if isinstance(value["imagePath"], str) else ""
    image = images.find_for(name, path, folder, found)
    sides = value.get("imageWidth"), value.get("imageHeight")
    declared = sides if all(type(side) is int and side > 0 for side in sides) else None
    size = image and images.size_of(image, place, found, declared)
    objects = []
    for index, shape in enumerate(value["shapes"]):
        item = _read_shape(shape, f"{place}, shapes[{index}]", size, found)
        if item:
            group = shape.get("group_id")
            objects.append((None if group is None else shown(group), item))
    return LabelledImage(image, size, join_groups(objects, found)) if size else None


def _read_shape(shape: Any, place: str, size: tuple[int, int] | None, found: Findings) -> LabelledObject | None:
    label = shape.get("label") if isinstance(shape, dict) else None
    if not isinstance(label, str) or not label.strip():
        found.error(_WRONG, f"{place}: must have a label that is a text and not empty, got {shown(label, 40)}")
        return None
    kind = shape.get("shape_type") or "polygon"  # older files have polygons alone
    if label in _NO_OBJECTS:
        found.leave_out(f"shapes with the label {label}", place)
        return None
    if kind not in _READ:
        found.leave_out(f"shapes of the type {shown(kind, 40)}", place)
        return None
    points = _points(shape.get("points"))
    least = {"polygon": 3, "rotation": 4}.get(kind, 2)
    if points is None or len(points) < least or (kind == "circle" and len(points) > 2):
        got = shown(shape.get("points"), 60)
        found.error(_WRONG, f"{place}: a {kind} must have points [[x, y], ...], at least {least}, got {got}")
        return None
    if size is None:
        return None
    if kind == "rectangle":
        low, high = points.min(axis=0), points.max(axis=0)
        return LabelledObject(label, place, (*low.tolist(), *(high - low).tolist()))
    if kind == "circle":
        radius = math.dist(*points)
        return LabelledObject(label, place, None, [within(ellipse(*points[0], radius, radius), size)])
    return LabelledObject(label, place, None, [points.flatten().tolist()])


def _points(value: Any) -> Points | None:
    """Return points `(P, 2)`, None if they are not a list of two numbers each."""
    if not isinstance(value, list):
        return None
    if not all(isinstance(point, list) and len(point) == 2 and all(map(is_number, point)) for point in value):
        return None
    return np.array(value, dtype=np.float64).reshape(-1, 2)
