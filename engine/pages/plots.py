"""Plots drawn with matplotlib, as SVG for an HTML page: text stays text and uses the colours of the page."""

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from html import escape

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from data.shown import escaped

# Distinguishable with any colour vision, on white and on black; the base is grey.
COLOURS = ("#7d8590", "#2a86c8", "#d55e00", "#009e73", "#b565a0", "#a88700")
# Placeholders for CSS colours of the page, which matplotlib does not accept.
INK, FAINT, PAPER = "#010203", "#040506", "#070809"
_CSS = {
    INK: "currentColor",
    FAINT: "var(--line, #d0d4da)",
    PAPER: "var(--paper, #ffffff)",
    "font-family: 'DejaVu Sans', sans-serif": "font-family: inherit",
}
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "text.parse_math": False,  # names are user data and may contain a $
}
_INCH = 72  # points of SVG
PLOT_SIZE = (4.6, 2.9)  # inches of a plot of curves
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
    size: tuple[float, float] = PLOT_SIZE,
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
    with plot_style():
        figure, axes = start_plot(size)
        for line, curves_of in (("--", dashed or {}), ("-", groups)):
            for group, curves in curves_of.items():
                for x, y in curves if len(curves) > 1 else ():
                    axes.plot(x, y, line, color=colours[group], linewidth=0.7, alpha=0.45)
                x, y = mean_curve(curves)
                marker = "o" if len(x) < 8 else ""
                axes.plot(x, y, line, color=colours[group], linewidth=1.8, marker=marker, markersize=3.5)
        axes.set(title=clipped(title, size[0]), xlabel=clipped(x_label, size[0]))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if x_limits:
            axes.set_xlim(x_limits)
        if y_limits:
            axes.set_ylim(y_limits)
        return finish_plot(figure, name, title)


def mean_curve(curves: Sequence[Curve]) -> tuple[list[float], list[float]]:
    """Average curves at the x values that all of them have."""
    points = [dict(zip(x, y, strict=True)) for x, y in curves]
    shared = [x for x in points[0] if all(x in found for found in points)] if points else []
    return shared, [float(np.mean([found[x] for found in points])) for x in shared]


def plot_bars(
    values: Mapping[str, float],
    colours: Mapping[str, str],
    *,
    name: str,
    title: str,
    x_label: str,
    form: str = "{:.1f}",
) -> str:
    """Draw horizontal bars with their values, from top to bottom.

    Args:
        values: length of each bar by its label.
        colours: colour of each bar by its label.
        name: unique id of the plot on the page.
        title: title.
        x_label: label of the x axis.
        form: format of a value.
    """
    width = PLOT_SIZE[0]
    with plot_style():
        figure, axes = start_plot((width, 0.85 + 0.26 * len(values)))
        bars = axes.barh(
            range(len(values)), [*values.values()], height=0.66, color=[colours[label] for label in values]
        )
        axes.bar_label(bars, [form.format(value) for value in values.values()], padding=3)
        axes.set_yticks(range(len(values)), [clipped(label, width / 3) for label in values])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.margins(x=0.12)  # space for the value of the longest bar
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set(title=clipped(title, width), xlabel=clipped(x_label, width))
        return finish_plot(figure, name, title)


def plot_style() -> AbstractContextManager:
    """Return the context in which a plot is drawn and finished."""
    return mpl.rc_context(_STYLE)


def clipped(text: str, inches: float) -> str:
    """Shorten a text that would not fit into the plot."""
    most, text = int(_LETTERS * inches), escaped(text)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def start_plot(size: tuple[float, float]) -> tuple[Figure, Axes]:
    """Return a transparent figure of this width and height in inches, and its axes."""
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasSVG(figure)
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    return figure, axes


def finish_plot(figure: Figure, name: str, title: str) -> str:
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
