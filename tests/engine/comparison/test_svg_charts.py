"""Which plots a comparison has, and of what."""

import dataclasses
import re

import pytest

from engine.comparison.differences import Difference
from engine.comparison.svg_charts import choose_classes, draw_charts
from engine.pages.plots import group_colours


@pytest.fixture
def draw():
    """`draw(comparison)`: all its plots."""
    return lambda comparison: draw_charts(
        comparison, ["AP", "AR1"], comparison.class_names[:3], group_colours([*comparison.groups]), "some-"
    )


def titles(plots):
    return [re.search('aria-label="([^"]*)"', plot).group(1) for plot in plots]


def test_all_plots(comparison, draw):
    plots = draw(comparison)
    assert titles(plots["differences"]) == ["All classes", "AP of each class"]
    assert titles(plots["learning"]) == ["Training loss", "AP on the val split, x100"]
    assert titles(plots["precision"]) == [
        "Precision at IoU 0.50, mean over classes",
        "Precision at IoU 0.75, mean over classes",
    ]
    assert titles(plots["class_precision"]) == comparison.class_names[:3]
    whole = [plot for kind in plots.values() for plot in kind]
    ids = [name for plot in whole for name in re.findall(r'\bid="([^"]*)"', plot)]
    assert len(ids) == len({*ids})
    assert all(name.startswith("some-") for name in ids)
    assert ">AR1<" in plots["differences"][0]
    assert ">bar<" in plots["differences"][1]
    assert "difference to plain, x100" in plots["differences"][0]
    assert "stroke-dasharray" in plots["class_precision"][0]
    assert draw(dataclasses.replace(comparison, differences={}))["differences"] == []


def heights(plot, colour):
    """Places of a line's points from the top, of the thick line of a colour."""
    paths = re.findall(rf'<path d="([^"]*)"[^>]*stroke: {colour}; stroke-width: 1.8', plot)
    return [[float(y) for _, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path)] for path in paths]


def test_what_the_curves_are_of(comparison, draw):
    plots = draw(comparison)
    colours = group_colours([*comparison.groups])
    # val/AP is 0.125 and 0.25 + seed / 100, so of plain in the mean 0.255, of dcn 0.265, all x100
    plain, dcn = (heights(plots["learning"][1], colours[name])[0] for name in ("plain", "dcn"))
    assert (dcn[0] - dcn[1]) / (plain[0] - plain[1]) == pytest.approx((26.5 - 12.5) / (25.5 - 12.5), rel=1e-3)
    assert ">20<" in plots["learning"][1]
    # precision falls from IoU 0.5 to 0.75, and the network with DCN has more of it
    half, three_quarters = (heights(plot, colours["plain"])[0] for plot in plots["precision"])
    assert sum(three_quarters) > sum(half) > sum(heights(plots["precision"][0], colours["dcn"])[0])
    dashed, solid = heights(plots["class_precision"][0], colours["plain"])
    assert sum(dashed) > sum(solid)


def test_classes_that_differ_most(comparison):
    values = {"bar": 0.1, "cross": -0.4, "star": 0.05, "tee": float("nan"), "triangle": 0.2}
    differences = {f"AP {name}": Difference(value, *[0.0] * 4, None, None) for name, value in values.items()}
    metrics = [found | {"AP tee": float("nan")} for found in comparison.groups["plain"].metrics]
    changed = dataclasses.replace(
        comparison,
        groups=comparison.groups | {"plain": dataclasses.replace(comparison.groups["plain"], metrics=metrics)},
        differences={"dcn": differences},
    )
    assert choose_classes(changed, 2) == ["cross", "triangle"]
    assert choose_classes(changed, 3) == ["bar", "cross", "triangle"]
    assert choose_classes(changed, 9) == ["bar", "cross", "star", "triangle"]
    alone = dataclasses.replace(changed, differences={})
    assert choose_classes(alone, 2) == ["bar", "cross"]


def named(comparison, name, key):
    """The same comparison with the class tee under another name, whose curves are under `key`."""
    groups = {
        group: dataclasses.replace(
            found,
            metrics=[
                {metric.replace("AP tee", f"AP {name}"): ap for metric, ap in run.items()} for run in found.metrics
            ],
            curves={
                iou: [{key if curve == "tee" else curve: values for curve, values in run.items()} for run in runs]
                for iou, runs in found.curves.items()
            },
        )
        for group, found in comparison.groups.items()
    }
    return dataclasses.replace(comparison, groups=groups, class_names=[name], differences={})


def test_a_class_called_all(comparison, draw):
    (found,) = draw(named(comparison, "all", "class all"))["class_precision"]
    (expected,) = draw(named(comparison, "lal", "lal"))["class_precision"]  # letters of the same size
    assert re.findall(r' d="([^"]*)"', found) == re.findall(r' d="([^"]*)"', expected)


def test_plots_of_masks(mask_comparison):
    colours = group_colours([*mask_comparison.groups])
    plots = draw_charts(mask_comparison, ["AP", "AR1", "mask_AP", "mask_AP75"], ["bar"], colours)
    assert titles(plots["differences"]) == [
        "All classes",
        "Masks, all classes",
        "AP of each class",
    ]
    boxes, masks, _ = plots["differences"]
    assert [label in boxes for label in (">AR1<", ">AP75<", ">mask_AP<")] == [True, False, False]
    assert [label in masks for label in (">AR1<", ">AP75<", ">mask_AP<")] == [False, True, False]
    assert [colours[name] in boxes for name in ("shifted", "boxes")] == [True, True]
    assert [colours[name] in masks for name in ("shifted", "boxes")] == [True, False]
    assert titles(plots["learning"])[1:] == ["AP on the val split, x100", "Mask AP on the val split, x100"]
    assert [colours[name] in plots["learning"][2] for name in ("good", "shifted", "boxes")] == [True, True, False]
    alone = dataclasses.replace(mask_comparison, differences={"boxes": mask_comparison.differences["boxes"]})
    plots = draw_charts(alone, ["AP", "mask_AP"], ["bar"], colours)
    assert titles(plots["differences"]) == ["All classes", "AP of each class"]
