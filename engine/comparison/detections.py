"""Detections of finished runs on their val split: read from a file next to the checkpoint, or computed."""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from data import CocoAnnotations, DatasetError, read_batches
from data.files import write_json
from data.json_file import read_json

from ..building import build_eval_loader, check_dcn_backend, max_aspect_ratio, read_split, warn_of_annotations
from ..devices import set_tf32
from ..display import log
from ..evaluation import MASK_PREFIX, MAX_DETECTIONS, check_results, detect, has_masks
from ..inference import restore_model
from ..runs import LAST
from ..weights import load_trained
from .bootstrap import MatchedImages, match_images
from .loaded_runs import Run
from .result import MASK_METRICS

Track = Callable[..., Iterable]
Value = TypeVar("Value")

_SAME_AP = 1e-6
# A larger difference to the AP of the last evaluation is not explained by another device or amp.
_OTHER_AP = 0.005


class Detected(NamedTuple):
    """Detections of a run on its val split.

    Attributes:
        results: COCO results of `detect`.
        matched: boxes, matched with the ground truth.
        matched_masks: masks, matched with the ground truth; None for detectors without masks.
        detected_now: whether the detections were computed now.
    """

    results: list[dict[str, Any]]
    matched: MatchedImages
    matched_masks: MatchedImages | None
    detected_now: bool

    def metrics(self) -> dict[str, float]:
        """Return the metrics of boxes and masks, see `with_masks`."""
        return with_masks(self.matched.metrics(), self.matched_masks and self.matched_masks.metrics())


def with_masks(boxes: Mapping[str, Value], masks: Mapping[str, Value] | None) -> dict[str, Value]:
    """Merge metrics of boxes with `MASK_METRICS`, if there are masks."""
    found = {} if masks is None else {name: masks[name.removeprefix(MASK_PREFIX)] for name in MASK_METRICS}
    return {**boxes, **found}


def read_val_split(run: Run, track: Callable[[Iterable], Iterable] = iter) -> CocoAnnotations:
    """Read the val split of a run, from the paths in its config.

    Raises:
        ValueError: if the files are missing or are not the files that the run was evaluated on.
    """
    try:
        split = read_split(
            run.config.data,
            "val",
            track,
            masks=run.config.model.spec.has_masks,
            max_aspect_ratio=max_aspect_ratio(run.config, "val"),
            run=run.folder,
        )
    except DatasetError as error:
        raise DatasetError(
            f"{error}; this path comes from the config of {run.folder}. To use other paths, add "
            "data.val.images=DIR data.val.annotations=FILE"
        ) from None
    if split.sha256 != run.annotations["val"]:
        raise ValueError(
            f"{run.folder} was evaluated on another annotation file than {split.path}: the SHA-256 must begin with "
            f"{run.annotations['val'][:12]}, got {split.sha256[:12]}"
        )
    warn_of_annotations(split)
    return split


def detect_with(run: Run, split: CocoAnnotations, *, device: torch.device, track: Track) -> Detected:
    """Return the detections of the last weights of a run (EMA weights if the run has them).

    The function reads the file that `tools/eval.py` writes next to the checkpoint, if the file is newer and has the AP
    of the checkpoint. Otherwise it runs the model on the split and writes the file, or logs a warning if it cannot.

    Args:
        run: finished run.
        split: result of `read_val_split`.
        device: device to run the model on.
        track: `track(items, label, total)` wraps a long iteration.
    """
    checkpoint = run.folder / LAST
    file = checkpoint.with_suffix(".detections.json")
    if (read := _read(file, checkpoint, split, run)) is not None:
        return read
    config = run.config
    check_dcn_backend(config.model, device)
    set_tf32(config.train.tf32)
    loader = build_eval_loader(config, split, pin_memory=device.type == "cuda")
    batches = track(read_batches(loader), f"detect with {run.folder}", len(loader))
    results = detect(load_model(run).to(device), batches, split.category_ids, device=device, amp=config.train.amp)
    found = _match(results, split, run, detected_now=True)
    for name, (here, last) in _aps(found, split, run).items():
        if abs(here - last) > _OTHER_AP:
            log.warning(
                "%s: %s is %.2f on %s, but was %.2f in the last evaluation of the run (x100)",
                run.folder,
                name.replace("_", " "),
                100 * here,
                device,
                100 * last,
            )
    try:
        write_json(file, results)
    except OSError as error:  # the folder may be read-only
        log.warning("%s cannot be written, so the next comparison runs the model again: %s", file, error.strerror)
    return found


def load_model(run: Run) -> nn.Module:
    """Build the detector of a run with its last weights, on the CPU and in eval mode."""
    trained = load_trained(run.folder / LAST)
    return restore_model(trained._replace(config=run.config))


def _match(
    results: list[dict[str, Any]],
    split: CocoAnnotations,
    run: Run,
    *,
    detected_now: bool,
    max_detections: int | None = None,
) -> Detected:
    most = max_detections or run.config.eval.max_detections
    kinds = ("bbox", "segm") if run.config.model.spec.has_masks else ("bbox",)
    boxes, *masks = (match_images(split.raw, results, kind, max_detections=most) for kind in kinds)
    return Detected(results, boxes, *(masks or [None]), detected_now)


def _aps(found: Detected, split: CocoAnnotations, run: Run) -> dict[str, tuple[float, float]]:
    """Return box AP and mask AP, each from these detections and from the last evaluation of the run."""
    logged = run.metrics.get("max_detections", MAX_DETECTIONS)
    if logged != found.matched.max_detections:  # an override of this comparison
        found = _match(found.results, split, run, detected_now=found.detected_now, max_detections=logged)
    metrics = found.metrics()
    return {name: (metrics[name], run.metrics[name]) for name in ("AP", f"{MASK_PREFIX}AP") if name in metrics}


def _read(file: Path, checkpoint: Path, split: CocoAnnotations, run: Run) -> Detected | None:
    """Read the detections of an earlier evaluation; return None unless they belong to these weights."""
    try:
        if file.stat().st_mtime < checkpoint.stat().st_mtime:
            return None
        results = check_results(split.raw, read_json(file))
    except (OSError, ValueError):
        return None
    if results and has_masks(results) != run.config.model.spec.has_masks:
        return None
    found = _match(results, split, run, detected_now=False)
    same = [
        math.isclose(here, last, rel_tol=0, abs_tol=_SAME_AP) or (math.isnan(here) and math.isnan(last))
        for here, last in _aps(found, split, run).values()
    ]
    return found if all(same) else None
