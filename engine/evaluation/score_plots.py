"""Plots of a score report: precision, recall and F1 over the score, and the confusion matrix."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from ..pages import COLOURS, Curve, clipped, plot_curves
from .confusion import Confusion
from .score_report import ScoreReport
from .thresholds import ScoreCurve

FIGURES = ("precision", "recall", "F1")
CURVE_COLOURS = dict(zip(FIGURES, COLOURS[1:4], strict=True))
# Classes that get a plot each, and classes of a matrix: those with the most errors
MOST_PLOTS, MOST_IN_MATRIX = 24, 100
# A matrix with more classes has no numbers in the cells of an image.
_MOST_NUMBERS = 25
_POINTS = 201
_STYLE = {"font.size": 8, "text.parse_math": False, "axes.titlesize": 9, "axes.titlelocation": "left"}


class Matrix(NamedTuple):
    """A confusion matrix for display.

    Attributes:
        rows: true classes, then the kinds of detections without an object.
        columns: detected classes, then "missed".
        counts: `(rows, columns)`.
        left_out: number of classes that are left out.
    """

    rows: list[str]
    columns: list[str]
    counts: NDArray[np.intp]
    left_out: int


def matrix_for_display(confusion: Confusion, most: int = MOST_IN_MATRIX) -> Matrix:
    """Return the confusion matrix of the `most` classes with the most errors, in the order of the annotation file."""
    kinds = {
        "(duplicate)": confusion.duplicates,
        "(badly placed)": confusion.badly_placed,
        "(false alarm)": confusion.false_alarms,
    }
    wrong = confusion.matrix.sum(0) + confusion.matrix.sum(1) - 2 * confusion.matrix.diagonal()
    errors = wrong + confusion.missed + sum(kinds.values())
    kept = np.sort(np.argsort(-errors, kind="stable")[:most])
    names = [confusion.class_names[index] for index in kept]
    inner = np.concatenate([confusion.matrix[np.ix_(kept, kept)], [counts[kept] for counts in kinds.values()]])
    missed = np.append(confusion.missed[kept], [0] * len(kinds))
    counts = np.concatenate([inner, missed[:, None]], axis=1)
    return Matrix([*names, *kinds], [*names, "(missed)"], counts, len(errors) - len(kept))


def shown_classes(report: ScoreReport, most: int = MOST_PLOTS) -> list[str]:
    """Return the classes with objects that get a plot: the `most` with the lowest best F1, in their order."""
    best = report.metrics["per_class_F1"]
    names = [name for name, curve in report.curves.items() if curve.objects]
    kept = {*sorted(names, key=lambda name: 0.0 if math.isnan(best[name]) else best[name])[:most]}
    return [name for name in names if name in kept]


def curve_plots(report: ScoreReport, prefix: str = "") -> tuple[str, list[str]]:
    """Return SVG plots: of the mean over the classes, and of `shown_classes`.

    Args:
        report: result of `score_report`.
        prefix: prefix of the ids in the plots, unique on a page.
    """
    limits = {"x_label": "score", "x_limits": _limits(report), "y_limits": (0.0, 1.02)}
    curves = [curve for curve in report.curves.values() if curve.objects]
    mean = _plot(_mean(curves, _grid(report)), name=f"{prefix}curve-all", title="Mean over the classes", **limits)
    single = [
        _plot(
            _single(report.curves[name], _grid(report)),
            name=f"{prefix}curve-{index}",
            title=name,
            size=(2.5, 2.0),
            **limits,
        )
        for index, name in enumerate(shown_classes(report))
    ]
    return mean, single


def draw_curves(report: ScoreReport) -> Tensor:
    """Draw the mean curves and the F1 of each class over the score, `(3, H, W)` uint8."""
    grid = _grid(report)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8, 3.2), layout="constrained", dpi=110)
        mean, single = figure.subplots(1, 2)
        curves = [curve for curve in report.curves.values() if curve.objects]
        for name, (x, y) in _mean(curves, grid).items():
            mean.plot(x, y, color=CURVE_COLOURS[name], label=name)
        best = report.metrics["score_threshold"]
        if not math.isnan(best):
            mean.axvline(best, color="0.4", linewidth=0.8, linestyle="--", label=f"best threshold {best:.3f}")
        names = shown_classes(report)
        for name in names:
            x, y = _single(report.curves[name], grid)["F1"]
            single.plot(x, y, linewidth=1, label=clipped(name, 1.5))
        mean.set(title="Mean over the classes", xlabel="score", xlim=_limits(report), ylim=(0, 1.02))
        single.set(title="F1 of each class", xlabel="score", xlim=_limits(report), ylim=(0, 1.02))
        if curves:
            mean.legend()
        if 0 < len(names) <= 10:
            single.legend()
        return _image(figure)


def draw_matrix(confusion: Confusion) -> Tensor:
    """Draw the confusion matrix as a heat map, `(3, H, W)` uint8. Colours are fractions of a row."""
    matrix = matrix_for_display(confusion)
    rows, columns = matrix.counts.shape
    side = 0.42 if columns <= _MOST_NUMBERS else 0.14
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(2.2 + side * columns, 1.8 + side * rows), layout="constrained", dpi=110)
        axes = figure.subplots()
        fractions = matrix.counts / np.maximum(matrix.counts.sum(1, keepdims=True), 1)
        axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
        size = 8 if columns <= _MOST_NUMBERS else 6
        axes.set_xticks(range(columns), _labels(matrix.columns), rotation=90, fontsize=size)
        axes.set_yticks(range(rows), _labels(matrix.rows), fontsize=size)
        axes.set(title="Objects (rows) and detections (columns)", xlabel="detected class", ylabel="true class")
        if columns <= _MOST_NUMBERS:
            for row, column in np.argwhere(matrix.counts).tolist():
                colour = "white" if fractions[row, column] > 0.5 else "black"
                count = matrix.counts[row, column]
                axes.text(column, row, f"{count}", ha="center", va="center", color=colour, fontsize=7)
        return _image(figure)


def _plot(curves: dict[str, Curve], **options: object) -> str:
    return plot_curves({name: [curve] for name, curve in curves.items()}, CURVE_COLOURS, **options)


def _limits(report: ScoreReport) -> tuple[float, float]:
    """Return the limits of the scores: 0 and 1, or more for results files with other scores."""
    ends = [curve.scores[[0, -1]] for curve in report.curves.values() if len(curve.scores)]
    return min(0.0, *np.ravel(ends), 0.0), max(1.0, *np.ravel(ends), 1.0)


def _grid(report: ScoreReport) -> NDArray[np.float64]:
    return np.linspace(*_limits(report), _POINTS)


def _single(curve: ScoreCurve, grid: NDArray[np.float64]) -> dict[str, Curve]:
    return {name: (grid, values) for name, values in zip(FIGURES, curve.at(grid), strict=True)}


def _mean(curves: Sequence[ScoreCurve], grid: NDArray[np.float64]) -> dict[str, Curve]:
    """Average as `threshold_metrics` does: precision over the classes with detections."""
    if not curves:
        return {}
    precision, recall, f1 = np.array([curve.at(grid) for curve in curves]).transpose(1, 0, 2)
    present = ~np.isnan(precision)
    counts = present.sum(0)
    sums = np.where(present, precision, 0).sum(0)
    mean = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    return dict(zip(FIGURES, ((grid, mean), (grid, recall.mean(0)), (grid, f1.mean(0))), strict=True))


def _labels(names: Sequence[str]) -> list[str]:
    return [clipped(name, 1.5) for name in names]


def _image(figure: Figure) -> Tensor:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].copy()).permute(2, 0, 1)
