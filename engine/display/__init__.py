"""What the terminal shows: the log, progress bars, tables and counted words."""

from .progress import COLOURS, PLAIN, Progress, log, start_logging, wants_colour
from .tables import counted, first_lines, format_table, percent

__all__ = [
    "COLOURS",
    "PLAIN",
    "Progress",
    "counted",
    "first_lines",
    "format_table",
    "log",
    "percent",
    "start_logging",
    "wants_colour",
]
