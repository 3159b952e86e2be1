"""HTML page of the best score thresholds: one self-contained file."""

from pathlib import Path

import numpy as np

from ..pages import page_templates
from .metrics import MASK_PREFIX
from .score_plots import CURVE_COLOURS, curve_plots, matrix_for_display, shown_classes
from .score_report import ScoreReport
from .score_tables import describe_confusion
from .thresholds import FEW_OBJECTS


def render_scores(report: ScoreReport, metrics: dict, *, title: str, about: str) -> str:
    """Render a page with the best thresholds, the curves and the confusion matrix.

    Args:
        report: result of `score_report`.
        metrics: metrics of `coco_metrics`.
        title: heading, such as the name of the run.
        about: what was evaluated, in a sentence.
    """
    mean, single = curve_plots(report)
    matrix = matrix_for_display(report.confusion)
    fractions = matrix.counts / np.maximum(matrix.counts.sum(1, keepdims=True), 1)
    cells = zip(matrix.rows, matrix.counts.tolist(), fractions.tolist(), strict=True)
    template = page_templates(Path(__file__).parent).get_template("score_page.html.j2")
    return template.render(
        title=title,
        about=about,
        metrics=metrics | report.metrics,
        kinds={"": "box AP", MASK_PREFIX: "mask AP"} if f"{MASK_PREFIX}AP" in metrics else {"": "AP"},
        few_objects=FEW_OBJECTS,
        sentences=describe_confusion(report.confusion).splitlines(),
        colours=CURVE_COLOURS,
        mean_plot=mean,
        class_plots=single,
        plotted_classes=shown_classes(report),
        matrix=matrix,
        matrix_rows=[(name, [*zip(counts, shares, strict=True)]) for name, counts, shares in cells],
        true_classes=len(matrix.columns) - 1,
    )
