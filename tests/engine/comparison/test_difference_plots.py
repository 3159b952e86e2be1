"""Plots of differences as SVG elements of a page."""

import re

import pytest

from engine.comparison.difference_plots import plot_differences, plot_gains
from engine.comparison.differences import Difference
from tests.html_pages import SVG, lines, parse, texts

NAMES = {"a": "#111213", "b": "#212223"}


ROWS = [
    ("sure", {"a": Difference(0.03, 0.01, 0.05, 0.01, 0.05, None, None)}),
    ("unsure", {"a": Difference(0.01, -0.02, 0.04, 0.0, 0.02, None, None)}),
    ("absent", {"a": Difference(*[float("nan")] * 5, None, None)}),
]


def test_differences():
    svg = plot_differences(ROWS, NAMES, name="one", title="all", x_label="to b")
    assert [text for text in texts(svg) if text in ("sure", "unsure", "absent")] == ["sure", "unsure", "absent"]
    # a filled dot and an open one; nothing where there is no figure
    uses = [element.get("style") for element in parse(svg).iter(f"{SVG}use")]
    dots = [style for style in uses if "stroke: #111213" in style]
    assert ["fill: #111213" in style for style in dots] == [True, False]
    assert "var(--paper" in dots[1]
    # the lines reach from low to high, on one scale
    found = [e.get("d") for e in parse(svg).iter(f"{SVG}path") if "stroke: #111213" in (e.get("style") or "")]
    ends = [[float(x) for x in re.findall(r"[ML] ([\d.]+)", path)] for path in found if path.count("L") == 1]
    (low, high), (low2, high2) = ends
    assert (high2 - low2) / (high - low) == pytest.approx(6 / 4, rel=1e-4)
    assert (low - low2) / (high - low) == pytest.approx(3 / 4, rel=1e-4)
    heights = {float(re.search(r"M [\d.]+ ([\d.]+)", path).group(1)) for path in found if path.count("L") == 1}
    assert len(heights) == 2


def test_differences_of_several_groups_do_not_cover_each_other():
    row = {"a": ROWS[0][1]["a"], "b": ROWS[0][1]["a"]}
    svg = plot_differences([("AP", row)], NAMES, name="one", title="all", x_label="x")
    places = {e.get("y") for e in parse(svg).iter(f"{SVG}use") if "#111213" in e.get("style")}
    assert places.isdisjoint({e.get("y") for e in parse(svg).iter(f"{SVG}use") if "#212223" in e.get("style")})
    assert len(places) == 1


def test_names_are_data_and_cut_short():
    name = '</text><script>"$x$"'
    assert name in texts(plot_differences([(name, ROWS[0][1])], NAMES, name="one", title="all", x_label=name))
    shown = texts(plot_differences([("x" * 20, ROWS[0][1])], NAMES, name="one", title="y" * 60, x_label="z" * 9))
    assert {"x" * 18 + "…", "y" * 57 + "…", "z" * 9} <= {*shown}


def test_every_reference_has_its_id():
    svg = plot_differences(ROWS, NAMES, name="three", title="all", x_label="x")
    used = re.findall(r'(?:href="#|url\(#)([^")]*)', svg)
    assert used
    assert {*used} <= {*re.findall(r'\bid="([^"]*)"', svg)}


def test_gains_over_a_number():
    """Dots are filled where the interval leaves out 0, ticks are the numbers, and intervals stand where they are."""
    sure, unsure = Difference(0.03, 0.01, 0.05, 0, 0, None, None), Difference(0.01, -0.02, 0.04, 0, 0, None, None)
    svg = plot_gains({"a": {0.0: unsure, 0.8: sure}, "b": {0.8: sure}}, NAMES, name="g", title="more", x_label="bend")
    assert {"more", "bend", "0", "0.8", "+3"} <= {*texts(svg)}
    assert lines(svg, "#111213") == ["1.2", "1.7", "1.7"]  # from dot to dot, and two intervals
    fills = re.findall(r"fill: (#111213|var\(--paper, #ffffff\)); stroke: #111213", svg)
    assert sorted({*fills}) == ["#111213", "var(--paper, #ffffff)"]
    alone = plot_gains({"b": {0.8: sure}}, NAMES, name="g", title="more", x_label="bend")
    assert lines(alone, "#212223")[-1] == "1.7"
