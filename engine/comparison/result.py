"""What a comparison of runs found: groups of seeds, and how each differs from the first."""

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

# Those that masks are compared by: AP, over all IoUs, at two of them, and by size
MASK_METRICS = tuple(f"{MASK_PREFIX}{name}" for name in COCO_METRICS[:6])


@dataclass(frozen=True)
class Costs:
    """What a group costs; of its runs the mean, of memory the most.

    Attributes:
        parameters: of the model.
        flops: of one image, the first of the val split. deformable_flops: of these, in deformable layers.
        step_s: median seconds of a training step. data_share: share of it that waited for data.
        training_gib: peak memory of training.
        inference_s: median seconds for an image, None where it was not timed.
        inference_gib: peak GPU memory for an image beyond the weights, None on a CPU and where nothing was timed.
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
    """Seeds of one config.

    Attributes:
        runs: one for each seed.
        metrics: of each run, see `MatchedImages.metrics`; of a detector with masks those of `MASK_METRICS` too.
        curves: by IoU and of each run, see `MatchedImages.curves`.
        costs: of the group.
    """

    runs: list[Run]
    metrics: list[dict[str, float]]
    curves: dict[float, list[dict[str, np.ndarray]]]
    costs: Costs

    def values(self, metric: str) -> list[float]:
        """A metric of each run; one of masks is NaN of a detector without."""
        if metric in MASK_METRICS and not self.has_masks:
            return [math.nan] * len(self.runs)
        return [found[metric] for found in self.metrics]

    @property
    def has_masks(self) -> bool:
        """Whether its detector gives masks."""
        return MASK_METRICS[0] in self.metrics[0]

    def mean(self, metric: str) -> float:
        """Mean of a metric over the runs."""
        return statistics.fmean(self.values(metric))

    def spread(self, metric: str) -> float:
        """Standard deviation of a metric over the runs, NaN for a single one."""
        return float(np.std(self.values(metric), ddof=1)) if len(self.runs) > 1 else math.nan

    def as_json(self) -> dict[str, Any]:
        """All of it in plain values."""
        return {
            "runs": [str(run.folder) for run in self.runs],
            "seeds": [run.seed for run in self.runs],
            "figures": {
                name: {"mean": self.mean(name), "std": self.spread(name), "values": self.values(name)}
                for name in self.metrics[0]
            },
            "costs": asdict(self.costs),
        }


@dataclass(frozen=True)
class Comparison:
    """Groups of runs, and how each differs from the first.

    Attributes:
        groups: by name; the first is the base.
        class_names: that were judged, as in "AP <class>" of the metrics.
        differences: by the other group's name and metric; those of masks where both have them.
        conclusions: a sentence on each other group, and where both have masks another on these.
        options: the options that differ, as JSON, by key and in each group.
        largest_differences: images on which base and other differ most, by the other's name.
        shown_runs: folders of the two runs that these are of.
        settings: what the comparison was made with and on.
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
        """Name of the group that the others are compared with."""
        return next(iter(self.groups))

    @property
    def has_masks(self) -> bool:
        """Whether there are metrics of masks."""
        return any(group.has_masks for group in self.groups.values())

    def as_json(self) -> dict[str, Any]:
        """All but pictures and curves in plain values, None in place of NaN."""
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
