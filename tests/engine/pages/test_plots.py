"""Plots as SVG elements of a page."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.pages.plots import COLOURS, group_colours, mean_curve, plot_bars, plot_curves
from tests.html_pages import SVG, lines, parse, texts

NAMES = {"a": "#111213", "b": "#212223"}


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


def bars():
    return plot_bars({"a": 1.0, "b": 0.25, "c": 0}, NAMES | {"c": "#313233"}, name="bars", title="all", x_label="x")


def test_bars():
    svg = bars()
    assert [text for text in texts(svg) if text in NAMES] == ["a", "b"]  # from top to bottom
    assert [text for text in texts(svg) if text in ("1.0", "0.2", "0.0")][-3:] == ["1.0", "0.2", "0.0"]
    found = [e for e in parse(svg).iter(f"{SVG}path") if re.search("fill: #[123]1", e.get("style") or "")]
    corners = [[float(x) for x in re.findall(r"[ML] ([\d.]+)", e.get("d"))] for e in found]
    lengths = [max(x) - min(x) for x in corners]
    assert lengths[1] / lengths[0] == pytest.approx(0.25, rel=1e-3)
    assert lengths[2] == 0


def ids(svg: str) -> set[str]:
    return set(re.findall(r'\bid="([^"]*)"', svg))


def test_plots_of_one_page_share_no_ids():
    one, two = curves(), curves(name="two")
    assert ids(one)
    assert ids(one).isdisjoint(ids(two))
    assert one == curves()  # nothing depends on when it was drawn
    for svg in (one, bars()):
        used = re.findall(r'(?:href="#|url\(#)([^")]*)', svg)
        assert used
        assert {*used} <= ids(svg)


def test_names_are_data():
    name = '</text><script>"$x$"'
    svg = curves(title=name)
    assert "<script" not in svg
    assert name in texts(svg)
    assert parse(svg).get("aria-label") == name
    assert "<b>$x$" in texts(plot_bars({"<b>$x$": 1.0}, {"<b>$x$": "#111213"}, name="one", title="all", x_label="x"))


def test_long_names_are_cut_short():
    long = {"x" * 20: 1.0}
    shown = texts(plot_bars(long, dict.fromkeys(long, "#111213"), name="one", title="y" * 60, x_label="z" * 9))
    assert {"x" * 17 + "…", "y" * 54 + "…", "z" * 9} <= {*shown}
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
