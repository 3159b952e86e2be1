"""Validation of COCO results from any source."""

import sys
from typing import Any

from data import declared_size, segmentation_problem
from data.coco_file import MAX_PX
from data.shown import shown

_IDS = {"image_id": "images", "category_id": "categories"}


def check_results(ground_truth: dict[str, Any], results: Any, source: str = "") -> list[dict[str, Any]]:
    """Check COCO results of boxes, masks or both for this ground truth.

    Args:
        ground_truth: loaded COCO instances file.
        results: content of a results file.
        source: name of the results for messages, such as "results file a.json".

    Returns:
        The results. Ids that are written as 1.0 are integers; all other values are unchanged.

    Raises:
        ValueError: if an entry is not valid, with the number of the entry, counted from 0.
    """
    where = f"{source}: " if source else ""
    if not isinstance(results, list):
        is_data_set = isinstance(results, dict) and "annotations" in results
        hint = " (a data set); tools/predict.py --annotations writes COCO results" if is_data_set else ""
        raise ValueError(f"{where}COCO results must be a list of detections, got {type(results).__name__}{hint}")
    sizes = {entry["id"]: declared_size(entry) for entry in ground_truth["images"]}
    known = {field: {entry["id"] for entry in ground_truth[part]} for field, part in _IDS.items()}
    masked = has_masks(results)
    checked = []
    for index, entry in enumerate(results):
        entry = _with_integer_ids(entry)
        if problem := _problem(entry, known, sizes, masked):
            raise ValueError(f"{where}detection {index}{problem}")
        checked.append(entry)
    return checked


def has_masks(results: list[dict[str, Any]]) -> bool:
    """Return whether COCO results have masks."""
    return any(isinstance(entry, dict) and entry.get("segmentation") for entry in results)


def image_size(entry: dict[str, Any], sizes: dict[int, tuple[int, int] | None]) -> tuple[int, int] | None:
    """Return (width, height) of a detection's image, from the annotation file or from the detection's mask, or None."""
    rle = entry.get("segmentation")
    own = rle.get("size") if isinstance(rle, dict) else None
    is_size = isinstance(own, list) and [type(v) for v in own] == [int, int] and 0 < min(own) <= max(own) < MAX_PX
    return sizes[entry["image_id"]] or ((own[1], own[0]) if is_size else None)


def is_whole_float(value: Any) -> bool:
    """Return whether a value is a float without a fraction, as pandas writes integers."""
    return type(value) is float and value.is_integer()


def _with_integer_ids(entry: Any) -> Any:
    """Return an entry with integers instead of whole floats as ids."""
    if not isinstance(entry, dict):
        return entry
    whole = {field: int(entry[field]) for field in _IDS if is_whole_float(entry.get(field))}
    return entry | whole if whole else entry


def _problem(entry: Any, known: dict[str, set[int]], sizes: dict[int, Any], masked: bool) -> str | None:
    """Return the problem of an entry, beginning with the characters after its number, or None."""
    if not isinstance(entry, dict):
        return f": expected a mapping with image_id, category_id, bbox and score, got {shown(entry)}"
    for field, ids in known.items():
        found = entry.get(field)
        if type(found) is not int or found not in ids:  # a bool is an int too
            return f": {field} {shown(found)} is not in the annotation file{_range(ids, field)}"
    bbox, score = entry.get("bbox"), entry.get("score")
    needs_box = not masked or bool(bbox)
    if not _is_finite(score) or (needs_box and not _has_numbers(bbox)):
        what = "bbox [x, y, width, height] and score as finite numbers" if needs_box else "a finite score"
        return f": expected {what}, got bbox {shown(bbox)}, score {shown(score)}"
    if needs_box and max(map(abs, bbox)) >= MAX_PX:
        return f": expected bbox in pixels, below {MAX_PX:g}, got bbox {shown(bbox)}"
    if needs_box and min(bbox[2:]) < 0:
        return f": expected bbox with a width and height of at least 0, got bbox {shown(bbox)}"
    if masked and (problem := segmentation_problem(entry.get("segmentation"), image_size(entry, sizes))):
        return f" {problem}"
    return None


def _range(ids: set[int], field: str) -> str:
    part = _IDS[field]
    return f", whose {part} have ids from {min(ids)} to {max(ids)}" if ids else f", which has no {part}"


def _has_numbers(bbox: Any) -> bool:
    return isinstance(bbox, list) and len(bbox) == 4 and all(map(_is_finite, bbox))


def _is_finite(value: Any) -> bool:
    """Return whether a value is a number that a float can hold; not a bool, which is an int too."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max
