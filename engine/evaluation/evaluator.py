"""COCO evaluation: what a model detects, and how good pycocotools finds it."""

import contextlib
import io
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from torchvision.ops import box_convert

from data import Batch, segmentation_problem, stated_size, to_rle

from ..devices import autocast, to_device
from ..display import log, percent
from ..distributed import ALONE, StopRequest, World

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
# Before the names of figures that masks are judged by; those of boxes stand alone
MASK_PREFIX = "mask_"
# Probability from which on a pixel belongs to the object
MASK_THRESHOLD = 0.5


@torch.inference_mode()
def detect(
    model: nn.Module, loader: Iterable[Batch], category_ids: Sequence[int], *, device: torch.device, amp: str = "off"
) -> list[dict[str, Any]]:
    """Run a detector over a loader; the model is left in the mode it was in.

    Returns:
        COCO results: dicts of `image_id`, `category_id`, `bbox` (x, y, width, height in pixels) and `score`, and where
        the detector gives masks `segmentation`, see `encode_masks`. An image that could not be read, where the loader
        leaves such images out, has none.
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
                results += coco_results(output, target["image_id"], category_ids)
    finally:
        model.train(was_training)
    return results


def coco_results(output: dict, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Turn the detections of one image into COCO results, see `detect`."""
    boxes_xywh = box_convert(output["boxes"].float().cpu(), "xyxy", "xywh")
    results = [
        {"image_id": image_id, "category_id": category_ids[label - 1], "bbox": bbox, "score": score}
        for bbox, label, score in zip(
            boxes_xywh.tolist(), output["labels"].tolist(), output["scores"].tolist(), strict=True
        )
    ]
    if "masks" in output:
        for result, rle in zip(results, encode_masks(output["masks"]), strict=True):
            result["segmentation"] = rle
    return results


def encode_masks(masks: Tensor) -> list[dict[str, Any]]:
    """Pack the masks of one image into run lengths of pycocotools, with `counts` as a string that JSON can hold.

    Args:
        masks: `(n, 1, H, W)` or `(n, H, W)` probabilities; a pixel belongs to the object from `MASK_THRESHOLD` on.
    """
    # pycocotools counts along the columns, so a copy that has them in a row is packed without another
    by_column = (masks.flatten(0, -3) >= MASK_THRESHOLD).to(torch.uint8).transpose(1, 2).contiguous()
    packed = coco_mask.encode(by_column.cpu().numpy().transpose(2, 1, 0))
    return [rle | {"counts": rle["counts"].decode("ascii")} for rle in packed]


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
    masks: bool = False,
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
        masks: whether the model gives masks, which are then judged beside the boxes.
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
    return world.from_main(lambda: coco_figures(ground_truth, gathered, masks=masks))


def coco_figures(
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
        The 12 `COCO_FIGURES` of the boxes as fractions, NaN where the file holds nothing to judge by; and `per_class`,
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


def has_masks(results: list[dict[str, Any]]) -> bool:
    """Whether COCO results have masks."""
    return any(isinstance(entry, dict) and entry.get("segmentation") for entry in results)


def number_figures(figures: dict[str, Any]) -> dict[str, float]:
    """The figures of `coco_figures` that are one number, without those by class."""
    return {name: value for name, value in figures.items() if not isinstance(value, dict)}


def describe_figures(figures: dict[str, Any]) -> str:
    """The main figures in words, x100, as in "AP 37.4, AP50 58.1, AP75 40.4, mask AP 34.7"."""
    names = [*COCO_FIGURES[:3], *([f"{MASK_PREFIX}AP"] if f"{MASK_PREFIX}AP" in figures else [])]
    return ", ".join(f"{name.replace('_', ' ')} {percent(figures[name])}" for name in names)


def match_results(ground_truth: dict[str, Any], results: list[dict[str, Any]], kind: str = "bbox") -> COCOeval:
    """Match detections with truth, image by image: pycocotools' judge after its `evaluate()`.

    Args:
        ground_truth: a COCO instances file, as loaded.
        results: COCO results, see `coco_figures`.
        kind: "bbox" for boxes, "segm" for masks.

    Raises:
        ValueError: see `coco_figures`.
    """
    check_results(ground_truth, results)
    if kind == "segm" and results and not has_masks(results):
        raise ValueError("masks cannot be judged: the detections have none")
    return _match(ground_truth, results, kind)


def _match(ground_truth: dict[str, Any], results: list[dict[str, Any]], kind: str) -> COCOeval:
    """Match by "bbox" or "segm", of results that were checked."""
    sizes = {entry["id"]: stated_size(entry) for entry in ground_truth["images"]}
    judged = []
    for index, entry in enumerate(results, start=1):
        has_box = bool(entry.get("bbox"))
        rle = None if kind == "bbox" and has_box else to_rle(entry["segmentation"], _size(entry, sizes))
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
    figures: dict[str, Any] = {name: _figure(value) for name, value in zip(COCO_FIGURES, judge.stats, strict=True)}
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


def check_results(ground_truth: dict[str, Any], results: Any) -> None:
    """Raise `ValueError` unless `results` are COCO results of boxes, masks or both for this ground truth."""
    if not isinstance(results, list):
        is_data_set = isinstance(results, dict) and "annotations" in results
        hint = ", a data set: tools/predict.py writes a list with --annotations" if is_data_set else ""
        raise ValueError(f"COCO results must be a list of detections, got {type(results).__name__}{hint}")
    sizes = {entry["id"]: stated_size(entry) for entry in ground_truth["images"]}
    known = {"image_id": set(sizes), "category_id": {entry["id"] for entry in ground_truth["categories"]}}
    masked = has_masks(results)
    for index, entry in enumerate(results):
        if not isinstance(entry, dict):
            raise ValueError(
                f"detection {index}: needs a mapping of image_id, category_id, bbox and score, got {entry!r}"
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
                f"detection {index}: needs {what}, got bbox {entry.get('bbox')!r}, score {entry.get('score')!r}"
            )
        if masked and (problem := segmentation_problem(entry.get("segmentation"), _size(entry, sizes))):
            raise ValueError(f"detection {index} {problem}")


def _size(entry: dict[str, Any], sizes: dict[int, tuple[int, int] | None]) -> tuple[int, int] | None:
    """(width, height) of a detection's image, as the annotation file has it or else the detection itself."""
    rle = entry.get("segmentation")
    own = rle.get("size") if isinstance(rle, dict) else None
    is_size = isinstance(own, list) and [type(v) for v in own] == [int, int] and min(own) > 0
    return sizes[entry["image_id"]] or ((own[1], own[0]) if is_size else None)
