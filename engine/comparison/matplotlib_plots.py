"""Plots drawn with matplotlib, as SVG for an HTML page: text stays text and uses the colours of the page."""

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from data.shown import escaped

from .differences import Difference

# Distinguishable with any colour vision, on white and on black; the base is grey.
COLOURS = ("#7d8590", "#2a86c8", "#d55e00", "#009e73", "#b565a0", "#a88700")
# Placeholders for CSS colours of the page, which matplotlib does not accept.
_INK, _FAINT, _PAPER = "#010203", "#040506", "#070809"
_CSS = {
    _INK: "currentColor",
    _FAINT: "var(--line, #d0d4da)",
    _PAPER: "var(--paper, #ffffff)",
    "font-family: 'DejaVu Sans', sans-serif": "font-family: inherit",
}
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": _FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "text.color": _INK,
    "text.parse_math": False,  # names are user data and may contain a $
}
_INCH = 72  # points of SVG
_SIZE = (4.6, 2.9)  # inches of a plot of curves
_WIDTH = 4.9  # inches of a plot of differences
_LETTERS = 12  # characters per inch

Curve = tuple[Sequence[float], Sequence[float]]


def group_colours(names: Sequence[str]) -> dict[str, str]:
    """Return the colour of each group, the same in all plots."""
    return {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}


def plot_curves(
    groups: Mapping[str, Sequence[Curve]],
    colours: Mapping[str, str],
    *,
    name: str,
    title: str,
    x_label: str,
    dashed: Mapping[str, Sequence[Curve]] | None = None,
    x_limits: tuple[float, float] | None = None,
    y_limits: tuple[float, float] | None = None,
    size: tuple[float, float] = _SIZE,
) -> str:
    """Draw a thin curve for each run, and a thick curve for the mean of each group.

    Args:
        groups: curves `(x, y)` of the runs of each group.
        colours: colour of each group.
        name: unique id of the plot on the page.
        title: title.
        x_label: label of the x axis.
        dashed: additional curves of the groups, drawn with dashed lines.
        x_limits: limits of the x axis; None: automatic.
        y_limits: limits of the y axis; None: automatic.
        size: width and height in inches; text is 9 points high.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _start(size)
        for line, curves_of in (("--", dashed or {}), ("-", groups)):
            for group, curves in curves_of.items():
                for x, y in curves if len(curves) > 1 else ():
                    axes.plot(x, y, line, color=colours[group], linewidth=0.7, alpha=0.45)
                x, y = mean_curve(curves)
                marker = "o" if len(x) < 8 else ""
                axes.plot(x, y, line, color=colours[group], linewidth=1.8, marker=marker, markersize=3.5)
        axes.set(title=_clipped(title, size[0]), xlabel=_clipped(x_label, size[0]))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if x_limits:
            axes.set_xlim(x_limits)
        if y_limits:
            axes.set_ylim(y_limits)
        return _finish(figure, name, title)


def mean_curve(curves: Sequence[Curve]) -> tuple[list[float], list[float]]:
    """Average curves at the x values that all of them have."""
    points = [dict(zip(x, y, strict=True)) for x, y in curves]
    shared = [x for x in points[0] if all(x in found for found in points)] if points else []
    return shared, [float(np.mean([found[x] for found in points])) for x in shared]


def plot_differences(
    rows: Sequence[tuple[str, Mapping[str, Difference]]],
    colours: Mapping[str, str],
    *,
    name: str,
    title: str,
    x_label: str,
) -> str:
    """Draw one row of differences and intervals per label; a dot is filled if the interval excludes 0.

    Args:
        rows: label and difference of each group as fractions, from top to bottom; shown x100.
        colours: colour of each group.
        name: unique id of the plot on the page.
        title: title.
        x_label: label of the x axis.
    """
    groups = [*dict.fromkeys(group for _, row in rows for group in row)]
    row_height = 0.22 if len(groups) < 3 else 0.1 * len(groups)
    with mpl.rc_context(_STYLE):
        figure, axes = _start((_WIDTH, 0.85 + row_height * len(rows)))
        for place, (_, row) in enumerate(rows):
            for index, group in enumerate(groups):
                if group in row:
                    shift = 0.56 * ((index + 0.5) / len(groups) - 0.5)
                    _draw_difference(axes, row[group], place + shift, colours[group])
        axes.axvline(0, color=_INK, linewidth=0.9, zorder=1)
        axes.set_yticks(range(len(rows)), [_clipped(label, _WIDTH / 3) for label, _ in rows])
        axes.set_ylim(len(rows) - 0.3, -0.7)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:+g}" if value else "0")
        axes.xaxis.set_major_locator(MaxNLocator(7))
        axes.set(title=_clipped(title, _WIDTH), xlabel=_clipped(x_label, _WIDTH))
        return _finish(figure, name, title)


def plot_gains(
    gains: Mapping[str, Mapping[float, Difference]],
    colours: Mapping[str, str],
    *,
    name: str,
    title: str,
    x_label: str,
) -> str:
    """Draw differences with intervals over a numeric x axis; dots are filled as in `plot_differences`.

    Args:
        gains: difference at each x value as fractions, by group; shown x100.
        colours: colour of each group.
        name: unique id of the plot on the page.
        title: title.
        x_label: label of the x axis.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _start(_SIZE)
        places = sorted({place for found in gains.values() for place in found})
        step = (places[-1] - places[0]) / 60 if places else 0.0
        for index, (group, found) in enumerate(gains.items()):
            shift = step * (index - (len(gains) - 1) / 2)  # so that intervals do not overlap
            x = [place + shift for place in found]
            axes.plot(x, [100 * one.value for one in found.values()], color=colours[group], linewidth=1.2, zorder=2)
            for place, one in zip(x, found.values(), strict=True):
                axes.plot([place] * 2, [100 * one.low, 100 * one.high], color=colours[group], linewidth=1.7, zorder=2)
                face = colours[group] if one.exceeds_uncertainty else _PAPER
                _draw_dot(axes, place, 100 * one.value, colours[group], face)
        axes.axhline(0, color=_INK, linewidth=0.9, zorder=1)
        axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:+g}" if value else "0")
        axes.set(title=_clipped(title, _SIZE[0]), xlabel=_clipped(x_label, _SIZE[0]))
        return _finish(figure, name, title)


def _draw_difference(axes: Axes, difference: Difference, place: float, colour: str) -> None:
    if not np.isfinite(difference.value):
        return
    low, high = 100 * difference.low, 100 * difference.high
    if np.isfinite(low) and np.isfinite(high):
        axes.plot([low, high], [place, place], color=colour, linewidth=1.7, solid_capstyle="butt", zorder=2)
    face = colour if difference.exceeds_uncertainty else _PAPER
    _draw_dot(axes, 100 * difference.value, place, colour, face)


def _draw_dot(axes: Axes, x: float, y: float, colour: str, face: str) -> None:
    axes.plot([x], [y], "o", markersize=5, markeredgewidth=1.4, markeredgecolor=colour, markerfacecolor=face, zorder=3)


def _clipped(text: str, inches: float) -> str:
    """Shorten a text that would not fit into the plot."""
    most, text = int(_LETTERS * inches), escaped(text)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _start(size: tuple[float, float]) -> tuple[Figure, Any]:
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasSVG(figure)
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    return figure, axes


def _finish(figure: Figure, name: str, title: str) -> str:
    """Return the `<svg>` element with unique ids and a responsive width."""
    with mpl.rc_context({"svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the page has other fonts than matplotlib
        target = io.StringIO()
        figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = target.getvalue()
    # remove the metadata, and the style, which would apply to the whole page
    svg = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</defs>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for stand_in, colour in _CSS.items():
        svg = svg.replace(stand_in, colour)
    width = figure.get_size_inches()[0] * _INCH
    box = re.search(r'viewBox="[^"]*"', svg).group()
    style = f"width: 100%; max-width: {1.5 * width:.0f}px; stroke-linejoin: round; stroke-linecap: butt"
    head = f'<svg {box} role="img" aria-label="{escape(escaped(title))}" style="{style}">'
    return head + svg[svg.index(">") + 1 :]
