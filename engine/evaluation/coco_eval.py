"""COCO metrics of detections, computed by pycocotools or faster-coco-eval."""

import contextlib
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from data import declared_size, segmentation_problem, to_rle, unique_names

from .backends import coco_eval_class
from .metrics import COCO_METRICS, MASK_PREFIX, MAX_DETECTIONS
from .results import check_results, has_masks, image_size


def coco_metrics(
    ground_truth: dict[str, Any],
    results: list[dict[str, Any]],
    *,
    masks: bool | None = None,
    ignore_unmasked: bool = False,
    max_detections: int = MAX_DETECTIONS,
    backend: str = "auto",
) -> dict[str, Any]:
    """Compute the COCO metrics of boxes and masks.

    Note: size categories of masks use the area of the mask. pycocotools uses the area of the box if results have both.

    Args:
        ground_truth: loaded COCO instances file. To evaluate masks, each annotation needs a `segmentation`.
        results: COCO results, see `detect`. Results without `bbox` are evaluated with the boxes around their masks. As
            in pycocotools, their size categories use the area of the mask.
        masks: whether to evaluate masks; None: if any result has a mask.
        ignore_unmasked: whether annotations without a valid mask are ignored in the metrics of masks instead of an
            error. As in crowd regions, detections in their boxes are then neither correct nor wrong.
        max_detections: number of detections of a class that are counted in an image, at least COCO's 100.
        backend: see `coco_eval_class`. The figures of both libraries agree to 1e-12.

    Returns:
        The 12 `COCO_METRICS` of boxes as fractions, NaN without ground truth; and `per_class`, the AP of each category
        by name. With masks also the metrics of masks, with the prefix "mask_". If `max_detections` is not COCO's, also
        `max_detections`, and the recall as `AR<max_detections>`; AR1, AR10 and AR100 count as many as their name.

    Raises:
        ValueError: if a result is not valid, has an unknown image or category, or if a required mask is missing or
            cannot be decoded, or if faster-coco-eval is asked for and cannot be used.
    """
    judge = coco_eval_class(backend)
    if max_detections < MAX_DETECTIONS:
        raise ValueError(f"`max_detections` must be at least {MAX_DETECTIONS}, got {max_detections}")
    results = check_results(ground_truth, results)
    metrics = _summarize(_match(judge, ground_truth, results, "bbox", max_detections), ground_truth)
    if has_masks(results) if masks is None else masks:
        matched = _match(judge, ground_truth, results, "segm", max_detections, ignore_unmasked)
        found = _summarize(matched, ground_truth)
        metrics |= {f"{MASK_PREFIX}{name}": value for name, value in found.items()}
    return metrics if max_detections == MAX_DETECTIONS else metrics | {"max_detections": max_detections}


def match_results(
    ground_truth: dict[str, Any],
    results: list[dict[str, Any]],
    kind: str = "bbox",
    *,
    max_detections: int = MAX_DETECTIONS,
) -> COCOeval:
    """Match detections to ground truth, image by image.

    Args:
        ground_truth: loaded COCO instances file.
        results: COCO results, see `coco_metrics`.
        kind: "bbox" for boxes, "segm" for masks.
        max_detections: see `coco_metrics`.

    Returns:
        The `COCOeval` of pycocotools after `evaluate()`.

    Raises:
        ValueError: see `coco_metrics`.
    """
    results = check_results(ground_truth, results)
    if kind == "segm" and results and not has_masks(results):
        raise ValueError("masks cannot be evaluated: the detections have no masks")
    return _match(COCOeval, ground_truth, results, kind, max_detections)


def _match(
    judge: type[Any],
    ground_truth: dict[str, Any],
    results: list[dict[str, Any]],
    kind: str,
    max_detections: int,
    ignore_unmasked: bool = False,
) -> Any:
    """Match checked results by "bbox" or "segm" with a class of `coco_eval_class`."""
    sizes = {entry["id"]: declared_size(entry) for entry in ground_truth["images"]}
    detections = []
    for index, entry in enumerate(results, start=1):
        has_box = bool(entry.get("bbox"))
        rle = None if kind == "bbox" and has_box else to_rle(entry["segmentation"], image_size(entry, sizes))
        bbox = entry["bbox"] if has_box else coco_mask.toBbox(rle).tolist()
        area = bbox[2] * bbox[3] if rle is None else int(coco_mask.area(rle))
        detections.append(entry | {"id": index, "bbox": bbox, "area": area, "iscrowd": 0, "segmentation": rle})
    if kind == "segm":
        # run lengths, because pycocotools would replace the polygons of `ground_truth` in place; both libraries require
        # sizes but do not use them for run lengths
        ground_truth = ground_truth | {
            "images": [entry | {"width": 0, "height": 0} for entry in ground_truth["images"]],
            "annotations": [
                _masked(entry, sizes[entry["image_id"]], ignore_unmasked) for entry in ground_truth["annotations"]
            ],
        }
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        evaluation = judge(_index(ground_truth), _index(ground_truth | {"annotations": detections}), kind)
        evaluation.params.maxDets = sorted({*evaluation.params.maxDets, max_detections})
        evaluation.evaluate()
    return evaluation


def _masked(annotation: dict[str, Any], size: tuple[int, int] | None, ignore_unmasked: bool) -> dict[str, Any]:
    problem = segmentation_problem(annotation.get("segmentation"), size)
    if problem and ignore_unmasked and size:
        width, height = map(int, size)
        (rle,) = coco_mask.frPyObjects(np.array([annotation["bbox"]], dtype=float), height, width)
        return annotation | {"segmentation": rle, "iscrowd": 1}
    if problem:
        raise ValueError(f"masks cannot be evaluated: annotation {annotation['id']} {problem}")
    return annotation | {"segmentation": to_rle(annotation["segmentation"], size)}


def _summarize(evaluation: Any, ground_truth: dict[str, Any]) -> dict[str, Any]:
    """Return the means that `COCOeval.summarize` prints; it has no AP for other numbers of detections than 100."""
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        evaluation.accumulate()
    parameters = evaluation.params
    precision = evaluation.eval["precision"]  # (IoU, recall, category, area, detections)
    recall = evaluation.eval["recall"]  # (IoU, category, area, detections)
    at_iou = {round(100 * iou): index for index, iou in enumerate(parameters.iouThrs)}
    areas = range(1, len(parameters.areaRng))
    values = [precision[..., 0, -1], *(precision[at_iou[iou], ..., 0, -1] for iou in (50, 75))]
    values += [precision[..., area, -1] for area in areas]
    values += [recall[..., 0, place] for place in range(3)]
    values += [recall[..., area, -1] for area in areas]
    metrics: dict[str, Any] = dict(zip(COCO_METRICS, map(_mean, values), strict=True))
    if len(parameters.maxDets) > 3:
        metrics[f"AR{parameters.maxDets[-1]}"] = _mean(recall[..., 0, -1])
    metrics["per_class"] = {
        name: _mean(precision[:, :, index, 0, -1])
        for index, name in enumerate(class_keys(ground_truth, parameters.catIds))
    }
    return metrics


def class_keys(ground_truth: dict[str, Any], category_ids: Sequence[int]) -> list[str]:
    """Return the names of categories: the id without a name, and the id as a suffix of a name that occurs twice."""
    found = {category["id"]: category.get("name") or str(category["id"]) for category in ground_truth["categories"]}
    names = dict(zip(found, unique_names([*found], [*found.values()]), strict=True))
    return [names[i] for i in category_ids]


def _mean(values: NDArray[np.float64]) -> float:
    """Return the mean of the values that exist; -1 marks values without ground truth."""
    present = values[values > -1]
    return float(present.mean()) if present.size else math.nan


def _index(dataset: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco
