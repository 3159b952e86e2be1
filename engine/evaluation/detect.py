"""Detections of a data set as COCO results, and their metrics."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torchvision.ops import box_convert

from data import Batch, encode_masks
from models.masks import paste_masks, unpasted_masks
from models.tiling import TiledDetector

from ..devices import autocast, to_device
from ..display import log
from ..distributed import SINGLE_PROCESS, DistributedContext, StopRequest
from .coco_eval import coco_metrics
from .metrics import MAX_DETECTIONS
from .score_report import ScoreReport, score_report


@torch.inference_mode()
def detect(
    model: nn.Module, loader: Iterable[Batch], category_ids: Sequence[int], *, device: torch.device, amp: str = "off"
) -> list[dict[str, Any]]:
    """Run a detector over a loader; its train or eval mode is restored.

    Args:
        model: detector.
        loader: loader of `data.eval_loader`.
        category_ids: category ids of labels 1, 2, ...
        device: device of the model.
        amp: "off", "bf16" or "fp16".

    Returns:
        COCO results: dicts with `image_id`, `category_id`, `bbox` (x, y, width, height in pixels) and `score`. With
        masks also `segmentation`, see `encode_masks`. Images that the loader skipped have no results.
    """
    was_training = model.training
    model.eval()
    results = []
    try:
        with unpasted_masks(model):
            for batch in loader:
                for message in batch.unreadable:
                    log.warning("evaluated without detections: %s", message)
                if not batch.images:
                    continue
                is_tiled = isinstance(model, TiledDetector)  # it converts its tiles
                images = batch.images if is_tiled else to_device(batch.images, [], device)[0]
                with autocast(device, amp):
                    outputs = model(images)
                for output, target in zip(outputs, batch.targets, strict=True):
                    results += coco_results(output, target["image_id"], category_ids)
    finally:
        model.train(was_training)
    return results


def coco_results(output: dict, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Convert the detections of one image to COCO results, see `detect`."""
    boxes_xywh = box_convert(output["boxes"].float().cpu(), "xyxy", "xywh")
    results = [
        {"image_id": image_id, "category_id": category_ids[label - 1], "bbox": bbox, "score": score}
        for bbox, label, score in zip(
            boxes_xywh.tolist(), output["labels"].tolist(), output["scores"].tolist(), strict=True
        )
    ]
    if "masks" in output or "mask_patches" in output:
        rles = (rle for masks in paste_masks(output) for rle in encode_masks(masks))
        for result, rle in zip(results, rles, strict=True):
            result["segmentation"] = rle
    return results


def gather_results(
    results: list[dict[str, Any]], ground_truth: dict, distributed: DistributedContext
) -> list[dict[str, Any]] | None:
    """Collect the results of all processes, in the order of the images.

    Returns:
        COCO results in the main process, None in the others. The order is that of a single process.
    """
    parts = distributed.gather_on_main(results)
    if parts is None or len(parts) == 1:
        return parts and parts[0]
    position = {entry["id"]: index for index, entry in enumerate(ground_truth["images"])}
    return sorted((entry for part in parts for entry in part), key=lambda entry: position[entry["image_id"]])


def evaluate(
    model: nn.Module,
    loader: Iterable[Batch],
    category_ids: Sequence[int],
    ground_truth: dict,
    *,
    masks: bool = False,
    max_detections: int = MAX_DETECTIONS,
    backend: str = "auto",
    device: torch.device,
    amp: str = "off",
    distributed: DistributedContext = SINGLE_PROCESS,
    stop: StopRequest | None = None,
    inspect: Callable[[ScoreReport], None] | None = None,
) -> dict[str, Any] | None:
    """Compute the COCO metrics of a detector, in all processes.

    Args:
        model: detector.
        loader: loader of `data.eval_loader`, in each process over its part of the images.
        category_ids: category ids of labels 1, 2, ..., see `CocoAnnotations`.
        ground_truth: loaded COCO instances file; used by the main process.
        masks: whether to evaluate masks as well as boxes.
        max_detections: see `coco_metrics`.
        backend: see `coco_metrics`.
        device: device of the model.
        amp: "off", "bf16" or "fp16".
        distributed: the processes that share the images.
        stop: checked before each batch; evaluation ends if a signal was received.
        inspect: receives the report of the score thresholds, in the main process.

    Returns:
        The metrics of `coco_metrics` and of `score_report`, or None if any process received a signal to stop.
    """
    with distributed.raise_together():
        results = detect(model, stop.until(loader) if stop else loader, category_ids, device=device, amp=amp)
    if any(distributed.gather(stop is not None and stop.received is not None)):
        return None
    gathered = gather_results(results, ground_truth, distributed)

    def summarize() -> dict[str, Any]:
        metrics = coco_metrics(ground_truth, gathered, masks=masks, max_detections=max_detections, backend=backend)
        report = score_report(ground_truth, gathered, max_detections=max_detections)
        if inspect:
            inspect(report)
        return metrics | report.metrics

    return distributed.run_on_main_and_broadcast(summarize)
