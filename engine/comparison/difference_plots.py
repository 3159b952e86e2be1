"""Plots of differences with their intervals, as SVG for the report."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ..pages import INK, PAPER, PLOT_SIZE, clipped, finish_plot, plot_style, start_plot
from .differences import Difference

_WIDTH = 4.9  # inches of a plot of differences


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
    with plot_style():
        figure, axes = start_plot((_WIDTH, 0.85 + row_height * len(rows)))
        for place, (_, row) in enumerate(rows):
            for index, group in enumerate(groups):
                if group in row:
                    shift = 0.56 * ((index + 0.5) / len(groups) - 0.5)
                    _draw_difference(axes, row[group], place + shift, colours[group])
        axes.axvline(0, color=INK, linewidth=0.9, zorder=1)
        axes.set_yticks(range(len(rows)), [clipped(label, _WIDTH / 3) for label, _ in rows])
        axes.set_ylim(len(rows) - 0.3, -0.7)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:+g}" if value else "0")
        axes.xaxis.set_major_locator(MaxNLocator(7))
        axes.set(title=clipped(title, _WIDTH), xlabel=clipped(x_label, _WIDTH))
        return finish_plot(figure, name, title)


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
    with plot_style():
        figure, axes = start_plot(PLOT_SIZE)
        places = sorted({place for found in gains.values() for place in found})
        step = (places[-1] - places[0]) / 60 if places else 0.0
        for index, (group, found) in enumerate(gains.items()):
            shift = step * (index - (len(gains) - 1) / 2)  # so that intervals do not overlap
            x = [place + shift for place in found]
            axes.plot(x, [100 * one.value for one in found.values()], color=colours[group], linewidth=1.2, zorder=2)
            for place, one in zip(x, found.values(), strict=True):
                axes.plot([place] * 2, [100 * one.low, 100 * one.high], color=colours[group], linewidth=1.7, zorder=2)
                face = colours[group] if one.exceeds_uncertainty else PAPER
                _draw_dot(axes, place, 100 * one.value, colours[group], face)
        axes.axhline(0, color=INK, linewidth=0.9, zorder=1)
        axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:+g}" if value else "0")
        axes.set(title=clipped(title, PLOT_SIZE[0]), xlabel=clipped(x_label, PLOT_SIZE[0]))
        return finish_plot(figure, name, title)


def _draw_difference(axes: Axes, difference: Difference, place: float, colour: str) -> None:
    if not np.isfinite(difference.value):
        return
    low, high = 100 * difference.low, 100 * difference.high
    if np.isfinite(low) and np.isfinite(high):
        axes.plot([low, high], [place, place], color=colour, linewidth=1.7, solid_capstyle="butt", zorder=2)
    face = colour if difference.exceeds_uncertainty else PAPER
    _draw_dot(axes, 100 * difference.value, place, colour, face)


def _draw_dot(axes: Axes, x: float, y: float, colour: str, face: str) -> None:
    axes.plot([x], [y], "o", markersize=5, markeredgewidth=1.4, markeredgecolor=colour, markerfacecolor=face, zorder=3)
