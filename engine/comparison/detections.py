"""What finished runs detect on their val split: as read from beside the checkpoint, or by the model run now."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from data import CocoAnnotations, DatasetError, read_batches
from data.files import write_json

from ..building import build_eval_loader, check_dcn_backend, read_split
from ..devices import set_tf32
from ..display import log
from ..evaluation import MASK_PREFIX, check_results, detect, has_masks
from ..inference import restore_model
from ..runs import LAST
from ..weights import load_trained
from .bootstrap import MatchedImages, match_images
from .loaded_runs import Run
from .result import MASK_METRICS

Track = Callable[..., Iterable]
Value = TypeVar("Value")

_SAME_AP = 1e-6
# Beyond this, another device or amp does not explain that the AP is not that of the run's last evaluation.
_OTHER_AP = 0.005


class Detected(NamedTuple):
    """What a run detects on its val split.

    Attributes:
        results: COCO results, as `detect` gives them.
        judged: their boxes, judged image by image.
        matched_masks: their masks, None of a detector without.
        detected_now: whether the model was run for it now.
    """

    results: list[dict[str, Any]]
    matched: MatchedImages
    matched_masks: MatchedImages | None
    detected_now: bool

    def metrics(self) -> dict[str, float]:
        """See `with_masks`."""
        return with_masks(self.matched.metrics(), self.matched_masks and self.matched_masks.metrics())


def with_masks(boxes: Mapping[str, Value], masks: Mapping[str, Value] | None) -> dict[str, Value]:
    """Figures of boxes, and beside them those of `MASK_METRICS`, where there are masks."""
    found = {} if masks is None else {name: masks[name.removeprefix(MASK_PREFIX)] for name in MASK_METRICS}
    return {**boxes, **found}


def read_val_split(run: Run, track: Callable[[Iterable], Iterable] = iter) -> CocoAnnotations:
    """Read the val split that a run was judged on, from where its config says.

    Raises:
        ValueError: if it is missing, with how to say where it is, or is not what the runs were judged on.
    """
    try:
        split = read_split(run.config.data, "val", track, masks=run.config.model.spec.has_masks, run=run.folder)
    except DatasetError as error:
        raise DatasetError(
            f"{error}; that is where the config of {run.folder} says; to say where the val split is, add "
            "data.val.images=DIR data.val.annotations=FILE"
        ) from None
    if split.sha256 != run.annotations["val"]:
        raise ValueError(
            f"annotation file {split.path} is not the one that {run.folder} was judged on: its SHA-256 must begin with "
            f"{run.annotations['val'][:12]}, got {split.sha256[:12]}"
        )
    return split


def detect_with(run: Run, split: CocoAnnotations, *, device: torch.device, track: Track) -> Detected:
    """Find what the last weights of a run detect, the averaged ones where there are any.

    The file that `tools/eval.py` leaves beside the checkpoint is used, if it is newer and has the AP that the
    checkpoint tells. Otherwise the model is run over the split, and the file written.

    Args:
        run: whose config says how images are fed to the model.
        split: of `read_val_split`.
        device: to run the model on.
        track: `track(items, label, total)` wraps a long iteration.

    Returns:
        What it detects; where the file cannot be written a warning is logged.
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
    for name, (here, last) in _aps(found, run).items():
        if abs(here - last) > _OTHER_AP:
            log.warning(
                "%s: %s %.2f of what it detects here on %s, but its last evaluation found %.2f (x100)",
                run.folder,
                name.replace("_", " "),
                100 * here,
                device,
                100 * last,
            )
    try:
        write_json(file, results)
    except OSError as error:  # the folder may be another's
        log.warning("%s cannot be written, and next time the model runs again: %s", file, error.strerror)
    return found


def load_model(run: Run) -> nn.Module:
    """Build the detector of a run with its last weights, on the CPU and in eval mode."""
    trained = load_trained(run.folder / LAST)
    return restore_model(trained._replace(config=run.config))


def _match(results: list[dict[str, Any]], split: CocoAnnotations, run: Run, *, detected_now: bool) -> Detected:
    masks = match_images(split.raw, results, "segm") if run.config.model.spec.has_masks else None
    return Detected(results, match_images(split.raw, results), masks, detected_now)


def _aps(found: Detected, run: Run) -> dict[str, tuple[float, float]]:
    """AP of boxes, and where there are any of masks: of what was found, and of the run's last evaluation."""
    metrics = found.metrics()
    return {name: (metrics[name], run.metrics[name]) for name in ("AP", f"{MASK_PREFIX}AP") if name in metrics}


def _read(file: Path, checkpoint: Path, split: CocoAnnotations, run: Run) -> Detected | None:
    """What an earlier evaluation of a checkpoint left, None if it is not certain to be about these weights."""
    try:
        if file.stat().st_mtime < checkpoint.stat().st_mtime:
            return None
        results = json.loads(file.read_bytes())
        check_results(split.raw, results)
    except (OSError, ValueError):
        return None
    if results and has_masks(results) != run.config.model.spec.has_masks:
        return None
    found = _match(results, split, run, detected_now=False)
    same = [
        math.isclose(here, last, rel_tol=0, abs_tol=_SAME_AP) or (math.isnan(here) and math.isnan(last))
        for here, last in _aps(found, run).values()
    ]
    return found if all(same) else None
