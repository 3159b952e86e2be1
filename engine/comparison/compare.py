"""Comparison of finished runs by their detections on a common val split."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from data import CocoAnnotations, CocoDetection, eval_transform

from ..building import describe_limits
from ..config import describe_unused, unused_overrides
from ..devices import describe, git_revision, pick_device, to_device
from ..display import Progress, log
from ..evaluation import score_report
from .bootstrap import bootstrap
from .costs import inference_memory, time_inference
from .detections import Detected, detect_with, load_model, read_val_split, with_masks
from .differences import Difference, conclusion, difference
from .flops import count_flops
from .largest_differences import SCORE_THRESHOLD, find_largest_differences
from .loaded_runs import Run, check_same_channels, check_same_limit, group_runs, option_differences, read_run
from .result import MASK_METRICS, Comparison, Costs, Group

# IoU thresholds of the precision-recall curves
CURVE_IOUS = (0.5, 0.75)


def compare_runs(
    folders: Sequence[Path],
    *,
    overrides: Sequence[str] = (),
    is_read: Callable[[str], bool] = lambda _: True,
    device: str = "auto",
    bootstrap_samples: int = 1000,
    seed: int = 0,
    num_images: int = 6,
    timed_images: int = 8,
    progress: Progress | None = None,
) -> Comparison:
    """Compare finished runs by the detections of their last weights on their common val split.

    Args:
        folders: run folders. Runs that differ only in the seed form a group; the first group is the base.
        overrides: `key=value` overrides of all configs, such as `data.val.images=photos`.
        is_read: returns whether the comparison reads an option; the others cause a warning if `overrides` has them.
        device: device of detection and timing; "auto" selects a GPU if there is one.
        bootstrap_samples: number of bootstrap samples of the images.
        seed: random seed of the bootstrap.
        num_images: number of images to show for each comparison, 0 for none.
        timed_images: number of val images to time inference with; 0 skips inference time and GPU memory.
        progress: progress bar.

    Raises:
        ValueError: if a run is not finished or is given twice, or if the runs have different or missing val splits.
    """
    progress = progress or Progress(silent=True)
    grouped = group_runs([read_run(folder, overrides) for folder in folders])
    target = pick_device(device)
    runs = [run for group in grouped.values() for run in group]
    # one run with masks is enough to need the masks of the split
    reader = next((run for run in runs if run.config.model.spec.has_masks), runs[0])
    check_same_limit(runs)
    check_same_channels(runs)
    unused = [unused_overrides(run.config, overrides, is_read) for run in runs]
    if nowhere := {key: why for key, why in unused[0].items() if all(key in found for found in unused)}:
        log.warning("%s", describe_unused(nowhere))
    split = read_val_split(reader, lambda items: progress.track(items, "check val images"))
    for run in runs:
        for problem in describe_limits(run.config, split):
            log.warning("%s: %s", run.folder, problem)
    pairs = _pairs(grouped)
    shown = {run.folder for pair in pairs.values() for run in pair} if num_images else set()
    detected: dict[Path, Detected] = {}
    thresholds: dict[Path, dict[str, Any]] = {}
    for run in runs:
        found = detect_with(run, split, device=target, track=progress.track)
        # the detections of all runs on COCO would not fit into memory
        kept = [entry for entry in found.results if run.folder in shown and entry["score"] >= SCORE_THRESHOLD]
        detected[run.folder] = found._replace(results=kept)
        report = score_report(split.raw, found.results, max_detections=found.matched.max_detections)
        thresholds[run.folder] = report.metrics
    costs = _measure_costs(grouped, split, target, timed_images, progress)
    groups = {name: _group(runs, detected, thresholds, costs[name]) for name, runs in grouped.items()}
    differences = _differences(groups, detected, bootstrap_samples, seed, progress)
    base = next(iter(groups))
    return Comparison(
        groups=groups,
        class_names=list(detected[groups[base].runs[0].folder].matched.class_names),
        differences=differences,
        conclusions={
            other: _say(base, other, found, len(groups[base].runs), len(groups[other].runs))
            for other, found in differences.items()
        },
        options=option_differences(grouped),
        largest_differences={
            other: find_largest_differences(split, *(detected[run.folder].results for run in pair), num_images)
            for other, pair in pairs.items()
            if num_images
        },
        shown_runs={other: (one.folder, two.folder) for other, (one, two) in pairs.items()},
        settings={
            "bootstrap_samples": bootstrap_samples,
            "seed": seed,
            "timed_images": min(timed_images, len(split.arrays)),
        }
        | _circumstances(split, target, detected),
    )


def _say(base: str, other: str, found: Mapping[str, Difference], base_seeds: int, other_seeds: int) -> str:
    """Return the conclusion about AP, and about mask AP if both groups have masks."""
    metrics = {"AP": "AP", "Mask AP": MASK_METRICS[0]}
    return " ".join(
        conclusion(base, other, name, found[metric], base_seeds, other_seeds)
        for name, metric in metrics.items()
        if metric in found
    )


def _circumstances(split: CocoAnnotations, device: torch.device, detected: Mapping[Path, Detected]) -> dict[str, Any]:
    """Return the environment of the comparison: device, revision, data."""
    return {
        "device": describe(device),
        "revision": git_revision(),
        "annotations": str(split.path),
        "annotations_sha256": split.sha256,
        "images": len(split.arrays),
        "boxes": len(split.arrays.boxes),
        "detected_now": [str(folder) for folder, found in detected.items() if found.detected_now],
    }


def _pairs(grouped: Mapping[str, list[Run]]) -> dict[str, tuple[Run, Run]]:
    """Return a run of the base and a run of each other group, with the same seed if possible."""
    base, *others = grouped.values()
    pairs = {}
    for name, runs in zip([*grouped][1:], others, strict=True):
        by_seed = {run.seed: run for run in runs}
        same = [run for run in base if run.seed in by_seed]
        pairs[name] = (same[0], by_seed[same[0].seed]) if same else (base[0], runs[0])
    return pairs


def _group(
    runs: list[Run], detected: Mapping[Path, Detected], thresholds: Mapping[Path, dict[str, Any]], costs: Costs
) -> Group:
    found = [detected[run.folder] for run in runs]
    return Group(
        runs=runs,
        metrics=[one.metrics() for one in found],
        curves={iou: [one.matched.curves(iou) for one in found] for iou in CURVE_IOUS},
        thresholds=[thresholds[run.folder] for run in runs],
        costs=costs,
    )


def _differences(
    groups: Mapping[str, Group], detected: Mapping[Path, Detected], samples: int, seed: int, progress: Progress
) -> dict[str, dict[str, Difference]]:
    """Return the differences of the other groups to the first, by group name and metric."""
    if len(groups) < 2:
        return {}
    folders = [run.folder for group in groups.values() for run in group.runs]
    boxes = {folder: detected[folder].matched for folder in folders}
    masks = {folder: found for folder in folders if (found := detected[folder].matched_masks) is not None}
    drawn = bootstrap(
        [*boxes.values(), *masks.values()],
        samples=samples,
        seed=seed,
        track=lambda items: progress.track(items, "bootstrap"),
    )
    of_masks = dict(zip(masks, drawn[len(boxes) :], strict=True))
    by_folder = {
        folder: with_masks(found, of_masks.get(folder))
        for folder, found in zip(boxes, drawn[: len(boxes)], strict=True)
    }
    (_, base), *others = groups.items()
    return {
        name: {
            metric: difference(
                base.values(metric),
                other.values(metric),
                *([by_folder[run.folder][metric] for run in group.runs] for group in (base, other)),
            )
            for metric in base.metrics[0]
            if metric in other.metrics[0]
        }
        for name, other in others
    }


def _measure_costs(
    grouped: Mapping[str, list[Run]],
    split: CocoAnnotations,
    device: torch.device,
    timed_images: int,
    progress: Progress,
) -> dict[str, Costs]:
    """Return logged training costs, FLOPs, and the inference time of the first run of each group."""
    dataset = CocoDetection(split, eval_transform())
    count = max(1, min(timed_images, len(dataset)))
    images = [dataset[len(dataset) * index // count][0] for index in range(count)]
    models = {name: load_model(runs[0]).to(device) for name, runs in grouped.items()}
    flops = {name: count_flops(model, to_device(images[:1], [], device)[0]) for name, model in models.items()}
    seconds, memory = {}, {}
    if timed_images:
        amps = {name: runs[0].config.train.amp for name, runs in grouped.items()}
        memory = inference_memory(models, images[0], device=device, amps=amps)
        track = lambda rounds: progress.track(rounds, "time inference")  # noqa: E731
        seconds = time_inference(models, images, device=device, amps=amps, track=track)
    return {
        name: Costs(
            parameters=runs[0].parameters,
            flops=flops[name].total,
            deformable_flops=flops[name].deformable,
            step_s=statistics.fmean(run.step_s for run in runs),
            data_share=statistics.fmean(run.data_share for run in runs),
            training_gib=max(run.peak_gib for run in runs),
            inference_s=statistics.median(seconds[name]) if name in seconds else None,
            inference_gib=memory[name] / 2**30 if name in memory else None,
        )
        for name, runs in grouped.items()
    }
