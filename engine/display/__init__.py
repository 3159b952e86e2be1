"""Output for people: the log, progress bars, tables, and images with boxes and masks."""

from .drawing import (
    GAP,
    SHORT_SIDE,
    draw_boxes,
    draw_detections,
    draw_ground_truth,
    draw_legend,
    draw_sample_grid,
    masks_of,
)
from .grid import draw_grid
from .guard import only_shown
from .progress import COLOURS, PLAIN, Progress, log, start_logging, wants_colour
from .rgb import as_rgb
from .tables import counted, first_lines, format_table, percent
from .terminal import Styled, for_people, safe_outputs
