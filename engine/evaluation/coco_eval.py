"""COCO metrics of detections, computed by pycocotools."""

import contextlib
import io
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from data import declared_size, segmentation_problem, to_rle

from .metrics import COCO_METRICS, MASK_PREFIX
from .results import check_results, has_masks, image_size


def coco_metrics(
    ground_truth: dict[str, Any], results: list[dict[str, Any]], *, masks: bool | None = None
) -> dict[str, Any]:
    """Compute the COCO metrics of boxes and masks with pycocotools.

    Note: size categories of masks use the area of the mask. pycocotools uses the area of the box if results have both.

    Args:
        ground_truth: loaded COCO instances file. To evaluate masks, each annotation needs a `segmentation`.
        results: COCO results, see `detect`. Results without `bbox` are evaluated with the boxes around their masks. As
            in pycocotools, their size categories use the area of the mask.
        masks: whether to evaluate masks; None: if any result has a mask.

    Returns:
        The 12 `COCO_METRICS` of boxes as fractions, NaN without ground truth; and `per_class`, the AP of each category
        by name. With masks also the metrics of masks, with the prefix "mask_".

    Raises:
        ValueError: if a result is not valid, has an unknown image or category, or if a required mask is missing or
            cannot be decoded.
    """
    check_results(ground_truth, results)
    metrics = _summarize(_match(ground_truth, results, "bbox"), ground_truth)
    if has_masks(results) if masks is None else masks:
        found = _summarize(_match(ground_truth, results, "segm"), ground_truth)
        metrics |= {f"{MASK_PREFIX}{name}": value for name, value in found.items()}
    return metrics


def match_results(ground_truth: dict[str, Any], results: list[dict[str, Any]], kind: str = "bbox") -> COCOeval:
    """Match detections to ground truth, image by image.

    Args:
        ground_truth: loaded COCO instances file.
        results: COCO results, see `coco_metrics`.
        kind: "bbox" for boxes, "segm" for masks.

    Returns:
        The `COCOeval` of pycocotools after `evaluate()`.

    Raises:
        ValueError: see `coco_metrics`.
    """
    check_results(ground_truth, results)
    if kind == "segm" and results and not has_masks(results):
        raise ValueError("masks cannot be evaluated: the detections have no masks")
    return _match(ground_truth, results, kind)


def _match(ground_truth: dict[str, Any], results: list[dict[str, Any]], kind: str) -> COCOeval:
    """Match checked results by "bbox" or "segm"."""
    sizes = {entry["id"]: declared_size(entry) for entry in ground_truth["images"]}
    detections = []
    for index, entry in enumerate(results, start=1):
        has_box = bool(entry.get("bbox"))
        rle = None if kind == "bbox" and has_box else to_rle(entry["segmentation"], image_size(entry, sizes))
        bbox = entry["bbox"] if has_box else coco_mask.toBbox(rle).tolist()
        area = bbox[2] * bbox[3] if rle is None else int(coco_mask.area(rle))
        detections.append(entry | {"id": index, "bbox": bbox, "area": area, "iscrowd": 0, "segmentation": rle})
    if kind == "segm":
        # run lengths, because pycocotools would replace the polygons of `ground_truth` in place; it requires sizes
        # but does not use them for run lengths
        ground_truth = ground_truth | {
            "images": [{"width": None, "height": None} | entry for entry in ground_truth["images"]],
            "annotations": [_masked(entry, sizes[entry["image_id"]]) for entry in ground_truth["annotations"]],
        }
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        evaluation = COCOeval(_index(ground_truth), _index(ground_truth | {"annotations": detections}), kind)
        evaluation.evaluate()
    return evaluation


def _masked(annotation: dict[str, Any], size: tuple[int, int] | None) -> dict[str, Any]:
    problem = segmentation_problem(annotation.get("segmentation"), size)
    if problem:
        raise ValueError(f"masks cannot be evaluated: annotation {annotation['id']} {problem}")
    return annotation | {"segmentation": to_rle(annotation["segmentation"], size)}


def _summarize(evaluation: COCOeval, ground_truth: dict[str, Any]) -> dict[str, Any]:
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        evaluation.accumulate()
        evaluation.summarize()
    metrics: dict[str, Any] = {name: _metric(value) for name, value in zip(COCO_METRICS, evaluation.stats, strict=True)}
    precision = evaluation.eval["precision"]  # (IoU, recall, category, area, detections)
    metrics["per_class"] = {}
    for index, name in enumerate(class_keys(ground_truth, evaluation.params.catIds)):
        values = precision[:, :, index, 0, -1]
        values = values[values > -1]
        metrics["per_class"][name] = float(values.mean()) if values.size else math.nan
    return metrics


def class_keys(ground_truth: dict[str, Any], category_ids: Sequence[int]) -> list[str]:
    """Return the names of categories; categories with the same name get their id as a suffix."""
    names = {category["id"]: str(category.get("name", category["id"])) for category in ground_truth["categories"]}
    shared = Counter(names.values())
    return [names[i] if shared[names[i]] == 1 else f"{names[i]} ({i})" for i in category_ids]


def _metric(value: np.floating) -> float:
    return float(value) if value > -1 else math.nan


def _index(dataset: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco
