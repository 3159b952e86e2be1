"""Result of a comparison: groups of runs, and their differences to the first group."""

import math
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.files import without_nan

from ..evaluation import COCO_METRICS, MASK_PREFIX
from .differences import Difference
from .largest_differences import ImageDifference
from .loaded_runs import Run

# Mask metrics of a comparison: AP over all IoUs, at two IoUs, and by size
MASK_METRICS = tuple(f"{MASK_PREFIX}{name}" for name in COCO_METRICS[:6])


@dataclass(frozen=True)
class Costs:
    """Cost of a group: means over its runs, and maxima for memory.

    Attributes:
        parameters: number of parameters.
        flops: FLOPs of the first image of the val split.
        deformable_flops: FLOPs of the deformable layers, part of `flops`.
        step_s: median seconds of a training step.
        data_share: fraction of the training step that waited for data.
        training_gib: peak memory of training.
        inference_s: median seconds per image, None if inference was not timed.
        inference_gib: peak GPU memory of one image without the weights, None on a CPU or if inference was not timed.
    """

    parameters: int
    flops: int
    deformable_flops: int
    step_s: float
    data_share: float
    training_gib: float
    inference_s: float | None
    inference_gib: float | None


@dataclass(frozen=True)
class Group:
    """Runs that differ only in the seed.

    Attributes:
        runs: one run for each seed.
        metrics: metrics of each run, see `MatchedImages.metrics`; with `MASK_METRICS` for detectors with masks.
        curves: precision-recall curves of each run by IoU, see `MatchedImages.curves`.
        thresholds: best score thresholds of each run, see `score_report`.
        costs: cost of the group.
    """

    runs: list[Run]
    metrics: list[dict[str, float]]
    curves: dict[float, list[dict[str, np.ndarray]]]
    thresholds: list[dict[str, Any]]
    costs: Costs

    def values(self, metric: str) -> list[float]:
        """Return a metric of each run; mask metrics are NaN for detectors without masks."""
        if metric in MASK_METRICS and not self.has_masks:
            return [math.nan] * len(self.runs)
        return [found[metric] for found in self.metrics]

    @property
    def has_masks(self) -> bool:
        """Whether the detector predicts masks."""
        return MASK_METRICS[0] in self.metrics[0]

    def mean(self, metric: str) -> float:
        """Return the mean of a metric over the runs."""
        return statistics.fmean(self.values(metric))

    def spread(self, metric: str) -> float:
        """Return the standard deviation of a metric over the runs, NaN for a single run."""
        return float(np.std(self.values(metric), ddof=1)) if len(self.runs) > 1 else math.nan

    def as_json(self) -> dict[str, Any]:
        """Return the group as plain values."""
        return {
            "runs": [str(run.folder) for run in self.runs],
            "seeds": [run.seed for run in self.runs],
            "figures": {
                name: {"mean": self.mean(name), "std": self.spread(name), "values": self.values(name)}
                for name in self.metrics[0]
            },
            "thresholds": self.thresholds,
            "costs": asdict(self.costs),
        }


@dataclass(frozen=True)
class Comparison:
    """Groups of runs, and the differences of each group to the first.

    Attributes:
        groups: groups by name; the first is the base.
        class_names: evaluated classes, as in the metrics "AP <class>".
        differences: differences by group name and metric; mask metrics if both groups have masks.
        conclusions: conclusion about each group, with a second one about masks if both groups have them.
        options: different options by key, as JSON for each group.
        largest_differences: images with the largest differences to the base, by group name.
        shown_runs: folders of the two runs in these images, by group name.
        settings: settings and environment of the comparison.
    """

    groups: dict[str, Group]
    class_names: list[str]
    differences: dict[str, dict[str, Difference]]
    conclusions: dict[str, str]
    options: dict[str, list[str]]
    largest_differences: dict[str, list[ImageDifference]]
    shown_runs: dict[str, tuple[Path, Path]]
    settings: dict[str, Any]

    @property
    def base(self) -> str:
        """Name of the group that all others are compared with."""
        return next(iter(self.groups))

    @property
    def has_masks(self) -> bool:
        """Whether there are mask metrics."""
        return any(group.has_masks for group in self.groups.values())

    def as_json(self) -> dict[str, Any]:
        """Return everything except images and curves as plain values, with None for NaN."""
        runs = [run for group in self.groups.values() for run in group.runs]
        found = {
            "runs": {str(run.folder): run.as_json() for run in runs},
            "groups": {name: group.as_json() for name, group in self.groups.items()},
            "differences": {
                other: {
                    name: {**value._asdict(), "exceeds_uncertainty": value.exceeds_uncertainty}
                    for name, value in found.items()
                }
                for other, found in self.differences.items()
            },
            "conclusions": self.conclusions,
            "options": {key: dict(zip(self.groups, cells, strict=True)) for key, cells in self.options.items()},
            "settings": self.settings,
        }
        return without_nan(found)
