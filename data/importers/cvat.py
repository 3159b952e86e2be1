"""CVAT for images: one XML file for all images, with boxes, polygons, ellipses and masks.

Format: https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/
"""

import math
from collections.abc import Callable, Iterable
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ..shown import shown
from .findings import Findings
from .folder import ImageIndex, LabelFolder, split_of, split_of_folder
from .records import LabelledImage, LabelledObject, Labels
from .shapes import corners, ellipse, join_groups, turned, within
from .xml_file import Element, XmlError, read_xml

_WRONG = "elements of CVAT files that are not valid"
_NUMBERS = {
    "box": ("xtl", "ytl", "xbr", "ybr"),
    "ellipse": ("cx", "cy", "rx", "ry"),
    "mask": ("left", "top", "width", "height"),
}
# Types of labels that detectors can learn; points, skeletons and tags have others.
_TYPES = ("", "any", "rectangle", "polygon", "ellipse", "mask")


def read_cvat(
    folder: LabelFolder, images: ImageIndex, found: Findings, progress: Callable[[Iterable], Iterable]
) -> Labels:
    """Read "CVAT for images 1.1" files. Polygons of a label with the same group are one object."""
    splits: dict[str, list[LabelledImage]] = {}
    names: dict[str, None] = {}
    for path in folder.with_suffix(".xml"):
        try:
            root = read_xml(path)
        except XmlError as error:
            found.error("files that are not valid XML", f"{folder.name(path)}: {error}")
            continue
        place = folder.name(path)
        if tracks := root.findall("track"):
            what = "files of CVAT for video, whose objects are tracks; export the task as CVAT for images 1.1"
            found.error(what, f"{place}: {len(tracks)} tracks")
        names |= dict.fromkeys(_label_names(root))
        before: dict[str, set[Path]] = {}
        for element in progress(root.findall("image")):
            image = _read_image(element, path, folder, images, found)
            if image is None:
                continue
            split = _split(element, path.relative_to(folder.root))
            where = f"{place}, line {element.line}"
            if image.path in before.setdefault(split, set()):
                found.error("images that a file has twice", f"{where}: {image.path}")
                continue
            before[split].add(image.path)
            images.owners[image.path] = where
            splits.setdefault(split, []).append(image)
    images.leave_out_others(found)
    used = {item.name for entries in splits.values() for image in entries for item in image.objects}
    names |= dict.fromkeys(sorted(used))
    return Labels(splits, {name: key for key, name in enumerate(names, start=1)})


def _label_names(root: Element) -> list[str]:
    """Return the names of the labels of objects, in the order of the task."""
    labels = [label for label in root.findall("meta//label") if label.value("type") in _TYPES]
    return [label.value("name") for label in labels if label.value("name") and not label.value("parent")]


def _split(element: Element, path: PurePath) -> str:
    subset = element.get("subset", "")
    return (split_of(PurePath(subset)) if subset else None) or split_of_folder(path) or "train"


def _read_image(
    element: Element, path: Path, folder: LabelFolder, images: ImageIndex, found: Findings
) -> LabelledImage | None:
    place = f"{folder.name(path)}, line {element.line}"
    name = element.get("name", "")
    # exports of projects have a folder for each subset
    stated = f"{element.get('subset')}/{name}" if element.get("subset") and name else name
    image = images.find_one(stated, place, found, path.relative_to(folder.root).parent)
    sides = element.get("width", ""), element.get("height", "")
    declared = tuple(map(int, sides)) if all(side.isdecimal() and int(side) > 0 for side in sides) else None
    size = image and images.size_of(image, f"{place}: {name}", found, declared)
    objects = []
    for shape in element:
        item = _read_shape(shape, f"{folder.name(path)}, line {shape.line}", size, found)
        if item:
            group = shape.get("group_id", "0")
            objects.append((None if group == "0" else group, item))
    return LabelledImage(image, size, join_groups(objects, found)) if size else None


def _read_shape(shape: Element, place: str, size: tuple[int, int] | None, found: Findings) -> LabelledObject | None:
    if shape.tag not in ("polygon", *_NUMBERS):
        found.leave_out(f"elements <{shape.tag}>", place)
        return None
    label = shape.get("label", "").strip()
    if not label:
        found.error(_WRONG, f"{place}: <{shape.tag}> must have a label that is not empty")
        return None
    if shape.tag == "polygon":
        pairs = [pair.split(",") for pair in shape.get("points", "").split(";")]
        points = [_number(word) for pair in pairs for word in pair]
        if None in points or any(len(pair) != 2 for pair in pairs):
            got = shown(shape.get("points"), 40)
            found.error(_WRONG, f"{place}: points of <polygon> must be numbers x,y;x,y;..., got {got}")
            return None
        return LabelledObject(label, place, None, [points])
    values = []
    for attribute in (*_NUMBERS[shape.tag], "rotation"):
        text = shape.get(attribute, "0" if attribute == "rotation" else "")
        values.append(_number(text))
        if values[-1] is None:
            found.error(_WRONG, f"{place}: {attribute} of <{shape.tag}> must be a number, got {shown(text, 40)}")
            return None
    if size is None:
        return None
    *sides, rotation = values
    if shape.tag == "mask":
        return _mask(shape, label, place, sides, size, found)
    if shape.tag == "ellipse":
        outline, pivot = ellipse(*sides), (sides[0], sides[1])
    else:
        left, top, right, bottom = sides
        if rotation == 0:
            return LabelledObject(label, place, (left, top, right - left, bottom - top))
        outline, pivot = corners(left, top, right - left, bottom - top), ((left + right) / 2, (top + bottom) / 2)
    return LabelledObject(label, place, None, [within(turned(outline, rotation, pivot), size)])


def _mask(
    shape: Element, label: str, place: str, sides: list[float], size: tuple[int, int], found: Findings
) -> LabelledObject | None:
    """Return a mask: run lengths along the rows of its box, of background and object in turn."""
    left, top, width, height = map(int, sides)
    runs = [_number(word) for word in shape.get("rle", "").split(",")]
    fits = all(run is not None and run >= 0 and run.is_integer() for run in runs)
    fits = fits and left >= 0 and top >= 0 and 0 < width <= size[0] - left and 0 < height <= size[1] - top
    if not fits or sum(runs) != width * height or not sum(runs[1::2]):
        what = f"must have runs of {width * height} pixels in a box within the image of {size[0]}x{size[1]}"
        got = f"{shown(shape.get('rle'), 40)} at {[left, top, width, height]}"
        found.error(_WRONG, f"{place}: <mask> {what}, got {got}")
        return None
    values = np.arange(len(runs), dtype=np.uint8) % 2
    mask = np.zeros((size[1], size[0]), dtype=np.uint8, order="F")
    mask[top : top + height, left : left + width] = values.repeat(np.array(runs, dtype=np.int64)).reshape(height, width)
    encoded: dict[str, Any] = coco_mask.encode(mask)
    return LabelledObject(label, place, None, encoded | {"counts": encoded["counts"].decode("ascii")})


def _number(word: str) -> float | None:
    try:
        value = float(word)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
