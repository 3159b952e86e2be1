"""Plain text tables for the terminal and the log."""

from collections.abc import Sequence
from typing import Any

from data.shown import escaped, shortened

# Characters of a cell; a longer name would make all rows of a table longer.
_WIDEST = 500


def format_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Format rows under a header: text left-aligned, numbers right-aligned, with thousands separators."""
    header = [_cell(name) for name in header]
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(row[column]) for row in [header, *cells]) for column in range(len(header))]
    right = [
        all(not isinstance(row[column], str) or row[column] in ("-", "") for row in rows)
        for column in range(len(header))
    ]
    lines = [header, ["-" * width for width in widths], *cells]
    return "\n".join(
        "  "
        + "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


def percent(fraction: float | None) -> str:
    """Format an AP fraction as COCO papers do: x100 with one decimal, or "-" for None and NaN."""
    return "-" if fraction is None or fraction != fraction else f"{100 * fraction:.1f}"


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: "1 image", "2 epochs", "3 boxes"."""
    plural = f"{noun}es" if noun.endswith(("s", "x", "tch", "nch", "sh")) else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"


def first_lines(items: Sequence[str], most: int) -> list[str]:
    """Return the first `most` items as indented lines, and a line with the number of the others."""
    more = [f"and {len(items) - most} more"] if len(items) > most else []
    return [f"      {item}" for item in [*items[:most], *more]]


def _cell(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return shortened(escaped(str(value)), _WIDEST)
