"""Validation of COCO results from any source."""

import math
from typing import Any

from data import declared_size, segmentation_problem


def check_results(ground_truth: dict[str, Any], results: Any) -> None:
    """Raise `ValueError` unless `results` are valid COCO results of boxes, masks or both for this ground truth."""
    if not isinstance(results, list):
        is_data_set = isinstance(results, dict) and "annotations" in results
        hint = " (a data set); tools/predict.py --annotations writes COCO results" if is_data_set else ""
        raise ValueError(f"COCO results must be a list of detections, got {type(results).__name__}{hint}")
    sizes = {entry["id"]: declared_size(entry) for entry in ground_truth["images"]}
    known = {"image_id": set(sizes), "category_id": {entry["id"] for entry in ground_truth["categories"]}}
    masked = has_masks(results)
    for index, entry in enumerate(results):
        if not isinstance(entry, dict):
            raise ValueError(
                f"detection {index}: expected a mapping with image_id, category_id, bbox and score, got {entry!r}"
            )
        for field, ids in known.items():
            found = entry.get(field)
            if not isinstance(found, int) or found not in ids:
                raise ValueError(f"detection {index}: {field} {found!r} is not in the annotation file")
        needs_box = not masked or entry.get("bbox")
        bbox = entry.get("bbox") if needs_box else [0] * 4
        numbers = [*bbox, entry.get("score")] if isinstance(bbox, list) else []
        if len(numbers) != 5 or not all(isinstance(v, int | float) and math.isfinite(v) for v in numbers):
            what = "bbox [x, y, width, height] and score as finite numbers" if needs_box else "a finite score"
            raise ValueError(
                f"detection {index}: expected {what}, got bbox {entry.get('bbox')!r}, score {entry.get('score')!r}"
            )
        if masked and (problem := segmentation_problem(entry.get("segmentation"), image_size(entry, sizes))):
            raise ValueError(f"detection {index} {problem}")


def has_masks(results: list[dict[str, Any]]) -> bool:
    """Return whether COCO results have masks."""
    return any(isinstance(entry, dict) and entry.get("segmentation") for entry in results)


def image_size(entry: dict[str, Any], sizes: dict[int, tuple[int, int] | None]) -> tuple[int, int] | None:
    """Return (width, height) of a detection's image, from the annotation file or from the detection's mask, or None."""
    rle = entry.get("segmentation")
    own = rle.get("size") if isinstance(rle, dict) else None
    is_size = isinstance(own, list) and [type(v) for v in own] == [int, int] and min(own) > 0
    return sizes[entry["image_id"]] or ((own[1], own[0]) if is_size else None)
