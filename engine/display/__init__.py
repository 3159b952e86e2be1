"""What people look at: the log, progress bars, tables, and images with boxes and masks."""

from .drawing import GAP, SHORT_SIDE, draw_boxes, draw_found, draw_legend, draw_objects, draw_truth, masks_of
from .progress import COLOURS, PLAIN, Progress, log, start_logging, wants_colour
from .tables import counted, first_lines, format_table, percent
