"""Self-contained HTML pages, and plots for them as SVG."""

from .page import embedded_jpeg, page_templates
from .plots import (
    COLOURS,
    FAINT,
    INK,
    PAPER,
    PLOT_SIZE,
    Curve,
    clipped,
    finish_plot,
    group_colours,
    plot_bars,
    plot_curves,
    plot_style,
    start_plot,
)
