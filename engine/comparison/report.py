"""HTML report of a comparison: one self-contained file."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment

from ..display import counted, percent
from ..evaluation import (
    COCO_METRICS,
    ERROR_TYPE_COLOURS,
    FEW_OBJECTS,
    MASK_PREFIX,
    MATCH_TYPES,
    METRIC_MEANINGS,
    MISSED,
    TRUE_POSITIVE,
    describe_error_type,
)
from ..pages import embedded_jpeg, group_colours, page_templates
from .differences import CONFIDENCE, Difference
from .largest_differences import SCORE_THRESHOLD, ImageDifference
from .result import MASK_METRICS, Comparison, Costs, Group
from .svg_charts import choose_classes, draw_charts

# Number of classes in the plots; the table lists all classes.
PLOTTED_CLASSES = 24


def render_report(comparison: Comparison) -> str:
    """Render a comparison as a self-contained HTML page."""
    return templates().get_template("report.html.j2").render(report_parts(comparison))


def templates() -> Environment:
    """Return the templates: `report.html.j2` and `study.html.j2` are pages, `comparison.html.j2` has the sections."""
    environment = page_templates(Path(__file__).parent)
    environment.filters |= {"signed": signed}
    environment.globals |= {"interval": interval, "mean_and_spread": mean_and_spread}
    return environment


def report_parts(comparison: Comparison, prefix: str = "") -> dict[str, Any]:
    """Return the values that `comparison.html.j2` shows.

    Args:
        comparison: result of `compare_runs`.
        prefix: prefix of the ids in the plots, unique for each comparison on a page.
    """
    names = [*comparison.groups]
    colours = group_colours(names)
    metrics, plotted_classes = _metric_rows(comparison), choose_classes(comparison, PLOTTED_CLASSES)
    mask_metrics = _mask_rows(comparison)
    return {
        "comparison": comparison,
        "base": comparison.base,
        "others": names[1:],
        "colours": colours,
        "headlines": [_headline(comparison, other) for other in names[1:]],
        "metrics": metrics,
        "mask_metrics": mask_metrics,
        "run_count": sum(len(group.runs) for group in comparison.groups.values()),
        "threshold_rows": threshold_rows([one for group in comparison.groups.values() for one in group.thresholds]),
        "few_objects": FEW_OBJECTS,
        "costs": cost_rows([group.costs for group in comparison.groups.values()]),
        "plots": draw_charts(comparison, [*metrics, *mask_metrics], plotted_classes, colours, prefix),
        "plotted_classes": plotted_classes,
        "largest_differences": {
            other: [_shown(one) for one in found] for other, found in comparison.largest_differences.items()
        },
        "error_type_colours": {
            describe_error_type(name): "#{:02x}{:02x}{:02x}".format(*rgb) for name, rgb in ERROR_TYPE_COLOURS.items()
        },
        "score_threshold": SCORE_THRESHOLD,
        "confidence": CONFIDENCE,
        "over_images_alone": [name for name, found in comparison.differences.items() if found["AP"].seeds_low is None],
        "several_seeds": any(len(group.runs) > 1 for group in comparison.groups.values()),
    }


def signed(fraction: float | None) -> str:
    """Format a difference x100 with its sign, "-" if it is undefined."""
    if fraction is None or not math.isfinite(fraction):
        return "-"
    return f"{round(100 * fraction, 1) + 0.0:+.1f}"  # + 0.0: no minus before a zero


def interval(low: float | None, high: float | None) -> str:
    """Format an interval x100, such as "+1.0 to +4.6", "-" if it is undefined."""
    return "-" if "-" in (signed(low), signed(high)) else f"{signed(low)} to {signed(high)}"


def with_interval(difference: Difference) -> str:
    """Format a difference x100 with its interval, and a star if the interval excludes 0; "-" if undefined."""
    star = " *" if difference.exceeds_uncertainty else ""
    shown = f"{signed(difference.value)} ({interval(difference.low, difference.high)}){star}"
    return "-" if math.isnan(difference.value) else shown


def mean_and_spread(group: Group, metric: str) -> str:
    """Format a metric of a group x100, with ± standard deviation for several seeds."""
    spread = group.spread(metric)
    return percent(group.mean(metric)) + ("" if math.isnan(spread) else f" ± {percent(spread)}")


def ratio(value: float | None, base: float | None) -> str:
    """Format the ratio of a cost to the base, such as "1.16x"; empty if one of them is unknown."""
    return f"{value / base:.2f}x" if value is not None and base else ""


def threshold_rows(thresholds: Sequence[dict[str, Any]]) -> list[tuple[str, int, list[tuple[float, ...]]]]:
    """Return the best thresholds of runs as rows: name, number of objects, and score, precision, recall, F1 of a run.

    The first row is that of all classes.
    """
    objects = thresholds[0]["per_class_objects"]
    names = ("score_threshold", "precision", "recall", "F1")
    every = [tuple(one[name] for name in names) for one in thresholds]
    by_class = {key: [tuple(one[f"per_class_{name}"][key] for name in names) for one in thresholds] for key in objects}
    rows = [(key, objects[key], cells) for key, cells in by_class.items()]
    return [("all classes", sum(objects.values()), every), *rows]


def cost_rows(costs: Sequence[Costs]) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Return the costs as rows: name, explanation, and for each group the value and its ratio to the first."""

    def row(name: str, about: str, values: Sequence[float | None], form: str) -> tuple:
        shown = ["-" if value is None else format(value, form) for value in values]
        ratios = ["" if index == 0 else ratio(value, values[0]) for index, value in enumerate(values)]
        return name, about, [*zip(shown, ratios, strict=True)]

    def times(values: Sequence[float | None], factor: float) -> list[float | None]:
        return [None if value is None else factor * value for value in values]

    inference_s = [one.inference_s for one in costs]
    waits = [(f"{one.data_share:.1%}", "") for one in costs]
    rows = [
        row("parameters", "number", [one.parameters for one in costs], ",d"),
        row("GFLOPs", "per image", times([one.flops for one in costs], 1e-9), ",.2f"),
        row(
            "GFLOPs, deformable",
            "part of GFLOPs",
            times([one.deformable_flops for one in costs], 1e-9),
            ",.2f",
        ),
        row("training step, s", "median, as logged", [one.step_s for one in costs], ".3f"),
        ("data wait", "fraction of the step", waits),
        row("training memory, GiB", "peak, as logged", [one.training_gib for one in costs], ".2f"),
        row("inference, ms", "per image, median", times(inference_s, 1e3), ".1f"),
        row("inference, images/s", "one at a time", [s and 1 / s for s in inference_s], ".1f"),
    ]
    if any(one.inference_gib is not None for one in costs):
        memory_mib = times([one.inference_gib for one in costs], 1024)
        rows.append(row("inference memory, MiB", "GPU peak without weights", memory_mib, ".0f"))
    return rows


def _headline(comparison: Comparison, other: str) -> dict[str, Any]:
    base, costs = comparison.groups[comparison.base].costs, comparison.groups[other].costs
    ratios = {
        "parameters": ratio(costs.parameters, base.parameters),
        "FLOPs": ratio(costs.flops, base.flops),
        "training step": ratio(costs.step_s, base.step_s),
        "inference time": ratio(costs.inference_s, base.inference_s),
    }
    return {
        "name": other,
        "sentence": comparison.conclusions[other],
        "difference": comparison.differences[other]["AP"],
        "ratios": {name: value for name, value in ratios.items() if value},
    }


def _metric_rows(comparison: Comparison) -> dict[str, str]:
    """Return the COCO metrics that are defined for this val split, with their meaning."""
    found = comparison.groups[comparison.base].metrics[0]
    return {name: METRIC_MEANINGS[name] for name in COCO_METRICS if not math.isnan(found[name])}


def _mask_rows(comparison: Comparison) -> dict[str, str]:
    """Return the mask metrics of the groups, with their meaning."""
    return {
        name: METRIC_MEANINGS[name.removeprefix(MASK_PREFIX)]
        for name in MASK_METRICS
        if not all(math.isnan(group.mean(name)) for group in comparison.groups.values())
    }


def _shown(difference: ImageDifference) -> dict[str, Any]:
    """Return an image difference with counts as text and embedded images."""
    return {
        "file_name": difference.file_name,
        "fewer_errors": difference.fewer_errors,
        "sides": [
            {"counts": _in_words(counts), "image": embedded_jpeg(image)}
            for counts, image in zip((difference.base, difference.other), difference.images, strict=True)
        ],
        "ground_truth": embedded_jpeg(difference.ground_truth),
        "objects": difference.base[TRUE_POSITIVE] + difference.base[MISSED],
    }


def _in_words(counts: Counter[str]) -> str:
    found = [name for name in MATCH_TYPES if counts[name] or name == TRUE_POSITIVE]
    missed = [f"{counts[MISSED]} missed"] if counts[MISSED] else []
    return ", ".join([*(counted(counts[name], name.replace("_", " ")) for name in found), *missed])
