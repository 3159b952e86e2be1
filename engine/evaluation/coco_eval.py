"""COCO's figures of detections, by pycocotools."""

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
    """Judge detections by pycocotools: their boxes, and their masks.

    Masks are small, medium or large by their own area. (pycocotools takes that of the box where results have both.)

    Args:
        ground_truth: a COCO instances file, as loaded; with masks each annotation needs a `segmentation`.
        results: COCO results, see `detect`. Those without `bbox` are judged by the boxes around their masks, and as
            pycocotools has it are small, medium or large by the masks then.
        masks: whether masks are judged; None: if results have any.

    Returns:
        The 12 `COCO_METRICS` of the boxes as fractions, NaN where the file holds nothing to judge by; and `per_class`,
        the AP of each category by name. With masks the same of them, as "mask_AP" and so on.

    Raises:
        ValueError: if an entry of `results` is none, or is about an unknown image or category, or if a mask that is
            needed is missing or cannot be read.
    """
    check_results(ground_truth, results)
    figures = _summarize(_match(ground_truth, results, "bbox"), ground_truth)
    if has_masks(results) if masks is None else masks:
        found = _summarize(_match(ground_truth, results, "segm"), ground_truth)
        figures |= {f"{MASK_PREFIX}{name}": value for name, value in found.items()}
    return figures


def match_results(ground_truth: dict[str, Any], results: list[dict[str, Any]], kind: str = "bbox") -> COCOeval:
    """Match detections with truth, image by image: pycocotools' judge after its `evaluate()`.

    Args:
        ground_truth: a COCO instances file, as loaded.
        results: COCO results, see `coco_metrics`.
        kind: "bbox" for boxes, "segm" for masks.

    Raises:
        ValueError: see `coco_metrics`.
    """
    check_results(ground_truth, results)
    if kind == "segm" and results and not has_masks(results):
        raise ValueError("masks cannot be judged: the detections have none")
    return _match(ground_truth, results, kind)


def _match(ground_truth: dict[str, Any], results: list[dict[str, Any]], kind: str) -> COCOeval:
    """Match by "bbox" or "segm", of results that were checked."""
    sizes = {entry["id"]: declared_size(entry) for entry in ground_truth["images"]}
    judged = []
    for index, entry in enumerate(results, start=1):
        has_box = bool(entry.get("bbox"))
        rle = None if kind == "bbox" and has_box else to_rle(entry["segmentation"], image_size(entry, sizes))
        bbox = entry["bbox"] if has_box else coco_mask.toBbox(rle).tolist()
        area = bbox[2] * bbox[3] if rle is None else int(coco_mask.area(rle))
        judged.append(entry | {"id": index, "bbox": bbox, "area": area, "iscrowd": 0, "segmentation": rle})
    if kind == "segm":
        # as run lengths, since pycocotools would put them in place of the polygons of `ground_truth`; it asks for sizes
        # that it then does not need
        ground_truth = ground_truth | {
            "images": [{"width": None, "height": None} | entry for entry in ground_truth["images"]],
            "annotations": [_masked(entry, sizes[entry["image_id"]]) for entry in ground_truth["annotations"]],
        }
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        judge = COCOeval(_index(ground_truth), _index(ground_truth | {"annotations": judged}), kind)
        judge.evaluate()
    return judge


def _masked(annotation: dict[str, Any], size: tuple[int, int] | None) -> dict[str, Any]:
    problem = segmentation_problem(annotation.get("segmentation"), size)
    if problem:
        raise ValueError(f"masks cannot be judged: annotation {annotation['id']} {problem}")
    return annotation | {"segmentation": to_rle(annotation["segmentation"], size)}


def _summarize(judge: COCOeval, ground_truth: dict[str, Any]) -> dict[str, Any]:
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        judge.accumulate()
        judge.summarize()
    figures: dict[str, Any] = {name: _figure(value) for name, value in zip(COCO_METRICS, judge.stats, strict=True)}
    precision = judge.eval["precision"]  # (IoU, recall, category, area, detections)
    figures["per_class"] = {}
    for index, name in enumerate(class_keys(ground_truth, judge.params.catIds)):
        values = precision[:, :, index, 0, -1]
        values = values[values > -1]
        figures["per_class"][name] = float(values.mean()) if values.size else math.nan
    return figures


def class_keys(ground_truth: dict[str, Any], category_ids: Sequence[int]) -> list[str]:
    """Names of categories; those that share one get their id behind it."""
    names = {category["id"]: str(category.get("name", category["id"])) for category in ground_truth["categories"]}
    shared = Counter(names.values())
    return [names[i] if shared[names[i]] == 1 else f"{names[i]} ({i})" for i in category_ids]


def _figure(value: np.floating) -> float:
    return float(value) if value > -1 else math.nan


def _index(dataset: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco
