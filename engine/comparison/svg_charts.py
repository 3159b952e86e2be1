"""Charts of the HTML report: selects the curves of a comparison and draws them as SVG."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ..evaluation import MASK_PREFIX
from ..pages import Curve, plot_curves
from .bootstrap import RECALLS
from .difference_plots import plot_differences
from .result import MASK_METRICS, Comparison, Group

_UNIT = {"x_limits": (0.0, 1.0), "y_limits": (0.0, 1.02)}


def choose_classes(comparison: Comparison, count: int) -> list[str]:
    """Return the `count` classes with the largest differences of AP, in the order of the annotation file.

    A single group has no differences: its first classes are returned. Classes without boxes are skipped.
    """
    found = comparison.groups[comparison.base].metrics[0]
    names = [name for name in comparison.class_names if not math.isnan(found[f"AP {name}"])]

    def size(name: str) -> float:
        return max((abs(differences[f"AP {name}"].value) for differences in comparison.differences.values()), default=0)

    kept = set(sorted(names, key=size, reverse=True)[:count])
    return [name for name in names if name in kept]


def draw_charts(
    comparison: Comparison,
    metrics: Sequence[str],
    class_names: Sequence[str],
    colours: Mapping[str, str],
    prefix: str = "",
) -> dict[str, list[str]]:
    """Draw all charts as SVG.

    Args:
        comparison: result of `compare_runs`.
        metrics: metrics whose differences are shown; mask metrics get a separate chart.
        class_names: classes that get a chart each.
        colours: colour of each group.
        prefix: prefix of the ids in the SVG, unique for each comparison on a page.

    Returns:
        Charts under "differences" (empty for a single group), "learning", "precision" and "class_precision".
    """
    return {
        "differences": _draw_differences(comparison, metrics, class_names, colours, prefix),
        "learning": [
            plot_curves(
                {name: _logged(group, tag, factor) for name, group in comparison.groups.items()},
                colours,
                name=f"{prefix}{tag.replace('/', '-')}",
                title=title,
                x_label="training step",
            )
            for tag, title, factor in (
                ("train/loss", "Training loss", 1),
                ("val/AP", "AP on the val split, x100", 100),
                *([("val/mask_AP", "Mask AP on the val split, x100", 100)] if comparison.has_masks else []),
            )
        ],
        "precision": [
            plot_curves(
                {name: _precision(group, iou, "all") for name, group in comparison.groups.items()},
                colours,
                name=f"{prefix}precision-{100 * iou:.0f}",
                title=f"Precision at IoU {iou:.2f}, mean over classes",
                x_label="recall",
                **_UNIT,
            )
            for iou in (0.5, 0.75)
        ],
        "class_precision": [
            _draw_class(comparison, name, colours, f"{prefix}precision-class-{index}")
            for index, name in enumerate(class_names)
        ],
    }


def _draw_class(comparison: Comparison, class_name: str, colours: Mapping[str, str], name: str) -> str:
    key = "class all" if class_name == "all" else class_name  # see `MatchedImages.curves`
    groups = comparison.groups.items()
    return plot_curves(
        {group: _mean(_precision(found, 0.5, key)) for group, found in groups},
        colours,
        dashed={group: _mean(_precision(found, 0.75, key)) for group, found in groups},
        name=name,
        title=class_name,
        x_label="recall",
        size=(2.5, 2.0),
        **_UNIT,
    )


def _draw_differences(
    comparison: Comparison,
    metrics: Sequence[str],
    class_names: Sequence[str],
    colours: Mapping[str, str],
    prefix: str,
) -> list[str]:
    if not comparison.differences:
        return []
    rows = {
        "All classes": [(name, name) for name in metrics if name not in MASK_METRICS],
        "Masks, all classes": [
            (name.removeprefix(MASK_PREFIX), name)
            for name in metrics
            if any(name in found for found in comparison.differences.values()) and name in MASK_METRICS
        ],
        "AP of each class": [(name, f"AP {name}") for name in class_names],
    }
    return [
        plot_differences(
            [
                (label, {other: found[key] for other, found in comparison.differences.items() if key in found})
                for label, key in keys
            ],
            colours,
            name=f"{prefix}differences-{index}",
            title=title,
            x_label=f"difference to {comparison.base}, x100",
        )
        for index, (title, keys) in enumerate(rows.items())
        if keys
    ]


def _logged(group: Group, tag: str, factor: float) -> list[Curve]:
    curves = [run.curve(tag) for run in group.runs]
    return [(steps, [factor * value for value in values]) for steps, values in curves if steps]


def _precision(group: Group, iou: float, key: str) -> list[Curve]:
    return [(RECALLS, curves[key]) for curves in group.curves[iou]]


def _mean(curves: Sequence[Curve]) -> list[Curve]:
    return [(curves[0][0], np.mean([y for _, y in curves], axis=0))]
