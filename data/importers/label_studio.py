"""Label Studio: its JSON export, with boxes, polygons and ellipses in percent of the image.

Format: https://labelstud.io/guide/export and https://labelstud.io/guide/task_format
"""

import math
import re
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path, PurePath, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from ..coco_file import is_number
from ..json_file import JsonError, read_json
from ..shown import shown
from .findings import Findings
from .folder import ImageIndex, LabelFolder, split_of_folder
from .records import LabelledImage, LabelledObject, Labels, sorted_classes
from .shapes import Points, corners, ellipse, turned, within

_WRONG = "regions of Label Studio that are not valid"
# Uploads get a prefix of eight hexadecimal digits.
_PREFIX = re.compile(r"^[0-9a-f]{8}-")
_LABELS = ("rectanglelabels", "polygonlabels", "ellipselabels", "labels")
_BOX, _ELLIPSE = ("x", "y", "width", "height"), ("x", "y", "radiusX", "radiusY")


def is_label_studio(value: Any) -> bool:
    """Return whether the content of a JSON file is an export of Label Studio: a list of tasks."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(t, dict) and ("data" in t or _is_min(t)) for t in value)
    )


def _is_min(task: dict[str, Any]) -> bool:
    return "annotation_id" in task and "annotator" in task


def read_label_studio(
    folder: LabelFolder, images: ImageIndex, found: Findings, progress: Callable[[Iterable], Iterable]
) -> Labels:
    """Read JSON exports. If a task has several annotations, the ground truth counts, or else the newest."""
    splits: dict[str, list[LabelledImage]] = {}
    for path in folder.with_suffix(".json"):
        try:
            tasks = read_json(path)
        except JsonError as error:
            found.error("files that are not valid JSON", str(error))
            continue
        if not is_label_studio(tasks):
            found.leave_out("JSON files without a list of tasks", folder.name(path))
            continue
        relative = path.relative_to(folder.root)
        for task in progress(tasks):
            place = f"{folder.name(path)}, task {shown(task.get('id'), 40)}"
            image = _read_task(task, place, relative.parent, images, found)
            if image and images.claim(image.path, place, found):
                splits.setdefault(split_of_folder(relative) or "train", []).append(image)
    images.leave_out_others(found)
    return Labels(splits, sorted_classes(splits))


def _read_task(
    task: dict[str, Any], place: str, folder: PurePath, images: ImageIndex, found: Findings
) -> LabelledImage | None:
    if _is_min(task):
        found.error("tasks of the export JSON-MIN; export them as JSON", place)
        return None
    regions = _regions(task, place, found)
    if regions is None:
        return None
    image = _find_image(task, place, folder, images, found)
    declared = next((size for region in regions if (size := _declared_size(region))), None)
    size = image and images.size_of(image, place, found, declared)
    labelled = {region.get("id") for region in regions if _label_of(region) is not None}
    objects = []
    for region in regions:
        where = f"{place}, region {shown(region.get('id'), 40)}"
        kind = region.get("type")
        if kind in ("rectangle", "polygon", "ellipse") and region.get("id") in labelled:
            continue  # another entry of the same region has its label
        objects.append(_read_region(region, where, size, found))
    return LabelledImage(image, size, [*filter(None, objects)]) if size else None


def _regions(task: dict[str, Any], place: str, found: Findings) -> list[dict[str, Any]] | None:
    """Return the regions of the annotation that counts; None if the task has no annotation."""
    annotations = task.get("annotations", task.get("completions"))
    if not isinstance(annotations, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get("result"), list) for entry in annotations
    ):
        found.error(
            _WRONG, f"{place}: must have a list of annotations with a result each, got {shown(annotations, 60)}"
        )
        return None
    if task.get("predictions"):
        found.leave_out("predictions of a model", place)
    kept = []
    for entry in annotations:
        if entry.get("was_cancelled") or entry.get("skipped"):
            found.leave_out("annotations that the annotator skipped", f"{place}: {len(entry['result'])} regions")
        else:
            kept.append(entry)
    if not kept:
        found.leave_out("tasks without an annotation", place)
        return None
    kept.sort(key=lambda entry: (bool(entry.get("ground_truth")), str(entry.get("updated_at", ""))))
    for entry in kept[:-1]:
        found.leave_out("older annotations of a task with several", f"{place}: {len(entry['result'])} regions")
    regions = []
    for entry in kept[-1]["result"]:
        if isinstance(entry, dict) and isinstance(entry.get("value"), dict):
            regions.append(entry)
        elif isinstance(entry, dict) and entry.get("type") == "relation":
            found.leave_out("results of the type relation", place)
        else:
            found.error(_WRONG, f"{place}: must be a mapping with a value, got {shown(entry, 60)}")
    return regions


def _find_image(task: dict[str, Any], place: str, folder: PurePath, images: ImageIndex, found: Findings) -> Path | None:
    """Return the image of a task, by any of its names; an upload has a prefix, and a local file a query."""
    data = task.get("data") if isinstance(task.get("data"), dict) else {}
    texts = [text for text in (*data.values(), task.get("file_upload")) if isinstance(text, str) and text]
    names = []
    for text in texts:
        name = _path_in(text)
        parts = PurePosixPath(name)
        names += [name, str(parts.with_name(_PREFIX.sub("", parts.name)))] if parts.name else []
    for name in names:
        if images.find(name, folder):
            return images.find_one(name, place, found, folder)
    found.error(f"labels whose image is not below {images.root}", f"{place}: {', '.join(names) or 'no name'}")
    return None


def _path_in(text: str) -> str:
    """Return the path of a URL, of /data/local-files/?d=path, or of a plain path."""
    try:
        parts = urlsplit(text)
        local = parse_qs(parts.query).get("d") if "local-files" in parts.path else None
    except ValueError:  # not a URL
        return text
    if local:
        return local[0]
    return unquote(parts.path) if parts.scheme or parts.query else unquote(text)


def _declared_size(region: dict[str, Any]) -> tuple[int, int] | None:
    sides = region.get("original_width"), region.get("original_height")
    return sides if all(type(side) is int and side > 0 for side in sides) else None


def _label_of(region: dict[str, Any]) -> str | None:
    """Return the first label of a region, "" if it has an empty list, and None if it is of another type."""
    for key in _LABELS:
        names = region["value"].get(key)
        if isinstance(names, list):
            return names[0].strip() if names and isinstance(names[0], str) else ""
    return None


def _read_region(
    region: dict[str, Any], place: str, size: tuple[int, int] | None, found: Findings
) -> LabelledObject | None:
    value, label = region["value"], _label_of(region)
    if label is None or not _has_shape(value):
        found.leave_out(f"results of the type {shown(region.get('type'), 40)}", place)
        return None
    if not label:
        found.leave_out("regions without a label", place)
        return None
    if region.get("image_rotation"):
        found.error(_WRONG, f"{place}: the image is turned by {shown(region['image_rotation'], 40)} degrees; undo it")
        return None
    if any(len(value[key]) > 1 for key in _LABELS if isinstance(value.get(key), list)):
        found.leave_out("further labels of a region", place)
    degrees = value.get("rotation") or 0
    keys = () if "points" in value else _ELLIPSE if "radiusX" in value else _BOX
    numbers = [value.get(key) for key in keys]
    points = _points(value["points"]) if not keys else None
    if not all(map(_is_finite, (*numbers, degrees))) or (not keys and points is None):
        found.error(_WRONG, f"{place}: must have numbers in percent of the image, got {shown(value, 100)}")
        return None
    if size is None:
        return None
    scale = np.array(size) / 100
    if points is not None:
        return LabelledObject(label, place, None, [(points * scale).flatten().tolist()])
    x, y, w, h = np.array(numbers, dtype=np.float64) * [*scale, *scale]
    if keys == _BOX and degrees == 0:
        return LabelledObject(label, place, (float(x), float(y), float(w), float(h)))
    # a box turns around its upper left corner, an ellipse around its center
    outline = turned(corners(x, y, w, h) if keys == _BOX else ellipse(x, y, w, h), degrees, (x, y))
    return LabelledObject(label, place, None, [within(outline, size)])


def _has_shape(value: dict[str, Any]) -> bool:
    return any(key in value for key in ("width", "radiusX", "points"))


def _points(value: Any) -> Points | None:
    if not isinstance(value, list) or not all(isinstance(point, list) and len(point) == 2 for point in value):
        return None
    return np.array(value, dtype=np.float64).reshape(-1, 2) if all(map(_is_finite, chain(*value))) else None


def _is_finite(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)
