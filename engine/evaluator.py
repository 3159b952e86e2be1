"""COCO evaluation: what a model detects, and how good pycocotools finds it."""

import contextlib
import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn
from torchvision.ops import box_convert

from data import Batch

from .distributed import ALONE, World
from .precision import autocast, to_device
from .preemption import StopRequest
from .progress import log

# The 12 figures of COCO in the order of COCOeval.stats, AP over IoU 0.50:0.95 unless named
COCO_FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
FIGURE_MEANINGS = {
    "AP": "IoU 0.50:0.95",
    "AP50": "IoU 0.50",
    "AP75": "IoU 0.75",
    "APs": "small, area < 32^2",
    "APm": "medium",
    "APl": "large, area > 96^2",
    "AR1": "1 detection an image",
    "AR10": "10 detections an image",
    "AR100": "100 detections an image",
    "ARs": "small",
    "ARm": "medium",
    "ARl": "large",
}


@torch.inference_mode()
def detect(
    model: nn.Module, loader: Iterable[Batch], category_ids: Sequence[int], *, device: torch.device, amp: str = "off"
) -> list[dict[str, Any]]:
    """Run a detector over a loader; the model is left in the mode it was in.

    Returns:
        COCO results: dicts of `image_id`, `category_id`, `bbox` (x, y, width, height in pixels) and `score`. An image
        that could not be read, where the loader leaves such images out, has none.
    """
    was_training = model.training
    model.eval()
    results = []
    try:
        for batch in loader:
            for message in batch.unreadable:
                log.warning("counts as without a detection: %s", message)
            if not batch.images:
                continue
            images, targets = to_device(batch.images, batch.targets, device)
            with autocast(device, amp):
                outputs = model(images)
            for output, target in zip(outputs, targets, strict=True):
                results += _coco_results(output, target["image_id"], category_ids)
    finally:
        model.train(was_training)
    return results


def _coco_results(output: dict, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    boxes_xywh = box_convert(output["boxes"].float().cpu(), "xyxy", "xywh")
    return [
        {"image_id": image_id, "category_id": category_ids[label - 1], "bbox": bbox, "score": score}
        for bbox, label, score in zip(
            boxes_xywh.tolist(), output["labels"].tolist(), output["scores"].tolist(), strict=True
        )
    ]


def gather_results(results: list[dict[str, Any]], ground_truth: dict, world: World) -> list[dict[str, Any]] | None:
    """Put together what all processes detected, in the order of the images, as one process would have.

    Returns:
        COCO results in the main process, None in the others.
    """
    parts = world.gather_on_main(results)
    if parts is None or len(parts) == 1:
        return parts and parts[0]
    place = {entry["id"]: index for index, entry in enumerate(ground_truth["images"])}
    return sorted((entry for part in parts for entry in part), key=lambda entry: place[entry["image_id"]])


def evaluate(
    model: nn.Module,
    loader: Iterable[Batch],
    category_ids: Sequence[int],
    ground_truth: dict,
    *,
    device: torch.device,
    amp: str = "off",
    world: World = ALONE,
    stop: StopRequest | None = None,
) -> dict[str, Any] | None:
    """Detect and judge: `coco_figures` of what `detect` finds, in all processes.

    Args:
        model: detector.
        loader: of `data.eval_loader`, in each process of its share of the images.
        category_ids: of the labels, see `CocoAnnotations`.
        ground_truth: a COCO instances file, as loaded; the main process judges.
        device: that the model is on.
        amp: as in training.
        world: the processes that share the images.
        stop: asked before each batch whether to give up.

    Returns:
        The figures, or None if some process was asked to stop.
    """
    with world.together():
        results = detect(model, stop.until(loader) if stop else loader, category_ids, device=device, amp=amp)
    if any(world.gather(stop is not None and stop.received is not None)):
        return None
    gathered = gather_results(results, ground_truth, world)
    return world.from_main(lambda: coco_figures(ground_truth, gathered))


def coco_figures(ground_truth: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, Any]:
    """Judge box detections by pycocotools.

    Args:
        ground_truth: a COCO instances file, as loaded.
        results: COCO results, see `detect`.

    Returns:
        The 12 `COCO_FIGURES` as fractions, NaN where the file holds no box to judge by; and `per_class`, the AP of each
        category by name.

    Raises:
        ValueError: if an entry of `results` is none, or is about an unknown image or category.
    """
    judge = match_results(ground_truth, results)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        judge.accumulate()
        judge.summarize()
    figures: dict[str, Any] = {name: _figure(value) for name, value in zip(COCO_FIGURES, judge.stats, strict=True)}
    precision = judge.eval["precision"]  # (IoU, recall, category, area, detections)
    figures["per_class"] = {}
    for index, name in enumerate(class_keys(ground_truth, judge.params.catIds)):
        values = precision[:, :, index, 0, -1]
        values = values[values > -1]
        figures["per_class"][name] = float(values.mean()) if values.size else math.nan
    return figures


def match_results(ground_truth: dict[str, Any], results: list[dict[str, Any]]) -> COCOeval:
    """Match detections with truth, image by image: pycocotools' judge after its `evaluate()`.

    Raises:
        ValueError: see `coco_figures`.
    """
    check_results(ground_truth, results)
    judged = [
        entry | {"id": index, "area": entry["bbox"][2] * entry["bbox"][3], "iscrowd": 0}
        for index, entry in enumerate(results, start=1)
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        judge = COCOeval(_index(ground_truth), _index(ground_truth | {"annotations": judged}), "bbox")
        judge.evaluate()
    return judge


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


def check_results(ground_truth: dict[str, Any], results: Any) -> None:
    """Raise `ValueError` unless `results` are COCO box results for this ground truth."""
    if not isinstance(results, list):
        raise ValueError(f"COCO results must be a list of detections, got {type(results).__name__}")
    known = {
        "image_id": {entry["id"] for entry in ground_truth["images"]},
        "category_id": {entry["id"] for entry in ground_truth["categories"]},
    }
    for index, entry in enumerate(results):
        if not isinstance(entry, dict):
            raise ValueError(
                f"detection {index}: needs a mapping of image_id, category_id, bbox and score, got {entry!r}"
            )
        for field, ids in known.items():
            found = entry.get(field)
            if not isinstance(found, int) or found not in ids:
                raise ValueError(f"detection {index}: {field} {found!r} is not in the annotation file")
        numbers = [*entry["bbox"], entry.get("score")] if isinstance(entry.get("bbox"), list) else []
        if len(numbers) != 5 or not all(isinstance(v, int | float) and math.isfinite(v) for v in numbers):
            raise ValueError(
                f"detection {index}: needs bbox [x, y, width, height] and score as finite numbers, "
                f"got bbox {entry.get('bbox')!r}, score {entry.get('score')!r}"
            )


def for_json(figures: dict[str, Any]) -> dict[str, Any]:
    """The same figures with None in place of NaN, which JSON lacks."""
    convert: Callable[[Any], Any] = lambda v: None if isinstance(v, float) and math.isnan(v) else v  # noqa: E731
    return {key: for_json(value) if isinstance(value, dict) else convert(value) for key, value in figures.items()}
