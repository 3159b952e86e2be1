"""IoU of the detections and the objects of an image, by boxes or by masks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from data import segmentation_problem, to_rle

from .results import image_size

Sizes = Mapping[int, tuple[int, int] | None]


def result_shapes(entries: Sequence[dict], sizes: Sizes, kind: str) -> list:
    """Return the boxes (xywh) or run-length encoded masks of results."""
    return [
        entry["bbox"] if kind == "bbox" and entry.get("bbox") else _shape_of(entry, image_size(entry, sizes), kind)
        for entry in entries
    ]


def _shape_of(entry: dict[str, Any], size: tuple[int, int] | None, kind: str) -> Any:
    rle = to_rle(entry["segmentation"], size)
    return coco_mask.toBbox(rle).tolist() if kind == "bbox" else rle


def true_shapes(entries: Sequence[dict], sizes: Sizes, kind: str) -> list:
    """Return the boxes (xywh) or run-length encoded masks of annotations."""
    if kind == "bbox":
        return [entry["bbox"] for entry in entries]
    for entry in entries:
        if problem := segmentation_problem(entry.get("segmentation"), sizes[entry["image_id"]]):
            raise ValueError(f"masks cannot be evaluated: annotation {entry['id']} {problem}")
    return [to_rle(entry["segmentation"], sizes[entry["image_id"]]) for entry in entries]


def overlaps(found: list, true: list, *, crowd: bool = False) -> NDArray[np.float64]:
    """Return the IoU `(n, m)`; of crowd regions the fraction of each detection that is inside."""
    if not (found and true):
        return np.zeros((len(found), len(true)))
    return np.asarray(coco_mask.iou(found, true, [int(crowd)] * len(true)))
