"""HTML page of the errors of a detector: one self-contained file."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from ..display import counted, percent
from ..evaluation import ERROR_KINDS
from ..pages import COLOURS, page_templates, plot_bars
from .analysis import ErrorAnalysis
from .drawing import DASHED, LEGEND
from .kinds import KIND_TEXTS
from .suspects import SUSPICIONS
from .worst import ReadImage, shown_suspects, worst_errors

Track = Callable[..., Iterable]


def render_errors(
    analysis: ErrorAnalysis,
    *,
    title: str,
    about: str,
    worst: int,
    read: ReadImage | None = None,
    track: Track = lambda items, *_: items,
) -> str:
    """Render the errors of a detector as a self-contained HTML page.

    Args:
        analysis: result of `analyse_errors`.
        title: title of the page.
        about: sentence about the detections and the data set.
        worst: number of images of each kind of errors, and of suspect labels.
        read: returns the image `(channels, H, W)` of an index in the annotation file; None: no images.
        track: `track(items, label)` wraps the work on the images.
    """
    costs = analysis.costs
    parts = [(worst_errors, kind) for kind in ERROR_KINDS] + [(shown_suspects, name) for name in SUSPICIONS]
    shown = {name: choose(analysis, name, worst, read) for choose, name in track(parts, "draw errors")}
    chart = plot_bars(
        {kind: 100 * value for kind, value in costs.kinds.items()},
        dict.fromkeys(ERROR_KINDS, COLOURS[1]),
        name="costs",
        title="Rise of AP50 if the errors of one kind are fixed, x100",
        x_label="dAP x100",
    )
    return (
        page_templates(Path(__file__).parent)
        .get_template("errors.html.j2")
        .render(
            title=title,
            about=about,
            headline=headline(analysis),
            costs=costs,
            figures=analysis.as_json(),
            chart=chart,
            texts=KIND_TEXTS,
            counts={kind: len(analysis.rows_of(kind)) for kind in ERROR_KINDS},
            suspicions=SUSPICIONS,
            suspects={name: len(found) for name, found in analysis.suspects.items()},
            classes=_by_loss(analysis),
            shown=shown,
            has_images=read is not None,
            is_mask=analysis.kind == "segm",
            legend=[("#{:02x}{:02x}{:02x}".format(*colour), colour in DASHED, name) for name, colour in LEGEND.items()],
        )
    )


def headline(analysis: ErrorAnalysis) -> str:
    """Return the kind of errors that costs most, as a sentence."""
    costs = analysis.costs
    if math.isnan(costs.ap):
        return "The data set has no objects, so AP is not defined. All detections are errors."
    kind = max(costs.kinds, key=lambda name: costs.kinds[name])
    if not costs.kinds[kind]:
        return f"AP50 is {percent(costs.ap)} (x100). No kind of errors costs AP."
    text = KIND_TEXTS[kind]
    count = counted(len(analysis.rows_of(kind)), "error")
    return (
        f'AP50 is {percent(costs.ap)} (x100). The kind of errors that costs most is "{kind}" ({text.meaning}): without '
        f"these {count}, AP50 is {percent(costs.ap + costs.kinds[kind])}. Usual remedies: {text.help}."
    )


def _by_loss(analysis: ErrorAnalysis) -> list[str]:
    """Return the class names, those with the lowest AP first, classes without objects last."""
    order = np.argsort(np.nan_to_num(analysis.costs.class_ap, nan=2.0), kind="stable")
    return [analysis.class_names[label] for label in order]
