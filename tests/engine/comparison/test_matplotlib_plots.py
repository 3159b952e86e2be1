"""Plots as SVG elements of a page."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.comparison.differences import Difference
from engine.comparison.matplotlib_plots import (
    COLOURS,
    group_colours,
    mean_curve,
    plot_curves,
    plot_differences,
    plot_gains,
)

SVG = "{http://www.w3.org/2000/svg}"
NAMES = {"a": "#111213", "b": "#212223"}


def parse(svg: str) -> ElementTree.Element:
    """The element as in a page, where these need not be declared."""
    spaces = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
    assert svg.startswith("<svg ")
    return ElementTree.fromstring(svg.replace("<svg ", spaces, 1))


def texts(svg: str) -> list[str]:
    return [element.text for element in parse(svg).iter(f"{SVG}text")]


def lines(svg: str, colour: str) -> list[str]:
    """Widths of the lines of a colour."""
    found = [element.get("style") for element in parse(svg).iter(f"{SVG}path") if element.get("clip-path")]
    return [re.search(r"stroke-width: ([\d.]+)", style).group(1) for style in found if f"stroke: {colour}" in style]


def curves(**options):
    groups = {"a": [([0, 5, 9], [1.0, 2.0, 3.0]), ([0, 5, 9], [2.0, 3.0, 4.0])], "b": [([0, 9], [3.0, 3.5])]}
    return plot_curves(groups, NAMES, **({"name": "one", "title": "title", "x_label": "steps"} | options))


def test_single_runs_are_thin_and_means_thick():
    svg = curves()
    assert lines(svg, "#111213") == ["0.7", "0.7", "1.8"]
    assert lines(svg, "#212223") == ["1.8"]
    assert {"title", "steps"} <= {*texts(svg)}


def test_dashed_curves():
    dashed = {"b": [([0, 9], [1.0, 2.0])]}
    assert "stroke-dasharray" in curves(dashed=dashed)
    assert "stroke-dasharray" not in curves()
    assert lines(curves(dashed=dashed), "#212223") == ["1.8", "1.8"]


def test_limits():
    assert {"0.0", "1.0"} <= {*texts(curves(x_limits=(0, 1)))}
    assert "9" not in texts(curves(y_limits=(0, 0.5)))
    assert texts(curves(y_limits=(0, 0.5))) != texts(curves())


@given(st.lists(st.dictionaries(st.integers(0, 6), st.floats(-9, 9)), min_size=1, max_size=4))
def test_mean_of_curves(points):
    x, y = mean_curve([([*found], [*found.values()]) for found in points])
    shared = [step for step in points[0] if all(step in found for found in points)]
    assert x == shared
    for step, value in zip(x, y, strict=True):
        total = 0.0
        for found in points:
            total += found[step]
        assert value == pytest.approx(total / len(points))


def test_no_curve_at_all():
    assert mean_curve([]) == ([], [])
    assert texts(curves(title="nothing", x_label="x"))[-1] == "nothing"
    parse(plot_curves({"a": []}, NAMES, name="one", title="nothing", x_label="x"))


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


def ids(svg: str) -> set[str]:
    return set(re.findall(r'\bid="([^"]*)"', svg))


def test_plots_of_one_page_share_no_ids():
    one, two = curves(), curves(name="two")
    assert ids(one)
    assert ids(one).isdisjoint(ids(two))
    assert one == curves()  # nothing depends on when it was drawn
    for svg in (one, plot_differences(ROWS, NAMES, name="three", title="all", x_label="x")):
        used = re.findall(r'(?:href="#|url\(#)([^")]*)', svg)
        assert used
        assert {*used} <= ids(svg)


def test_names_are_data():
    name = '</text><script>"$x$"'
    svg = curves(title=name)
    assert "<script" not in svg
    assert name in texts(svg)
    assert parse(svg).get("aria-label") == name
    rows = [(name, ROWS[0][1])]
    assert name in texts(plot_differences(rows, NAMES, name="one", title="all", x_label=name))


def test_long_names_are_cut_short():
    shown = texts(plot_differences([("x" * 20, ROWS[0][1])], NAMES, name="one", title="y" * 60, x_label="z" * 9))
    assert {"x" * 18 + "…", "y" * 57 + "…", "z" * 9} <= {*shown}
    assert "t" * 54 + "…" in texts(curves(title="t" * 99))
    assert "t" * 55 in texts(curves(title="t" * 55))


def test_plots_load_nothing_and_take_the_page_colours():
    svg = curves()
    assert "://" not in svg
    assert "<style" not in svg
    assert "currentColor" in svg
    assert not re.search(r"#0[147]0[258]0[369]", svg)
    assert "DejaVu" not in svg


def test_colours_of_groups():
    names = [f"group {index}" for index in range(8)]
    colours = group_colours(names)
    assert [*colours] == names
    assert [*colours.values()] == [*COLOURS, *COLOURS[:2]]
    assert len({*COLOURS}) == len(COLOURS)
    # seen on white and on black: contrast of 3 and more, by WCAG 2
    for colour in COLOURS:
        channels = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        luminance = linear @ [0.2126, 0.7152, 0.0722]
        assert 1.05 / (luminance + 0.05) > 3
        assert (luminance + 0.05) / (0.01 + 0.05) > 3


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
